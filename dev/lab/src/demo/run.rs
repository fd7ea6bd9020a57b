//! Both acts, one after the other.

use std::time::Instant;

use ninefold_model::VmName;
use ninefold_model::spec::{Acknowledge, NonVolatile};

use super::act::ms;
use super::report::DemoReport;
use super::{Audience, database, redis};
use crate::boot::VmOptions;
use crate::config::{LabConfig, LabSecurity};
use crate::disks;
use crate::error::LabError;

/// What a demo shall show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The lab that is made for the first act.
    pub lab: LabConfig,
    /// The first act's VM.
    pub vm: VmOptions,
    /// The second act's lab; of the same name, if only one is to be there at a time.
    pub database_lab: LabConfig,
    /// The second act's VM.
    pub database: VmOptions,
    /// How many times the primary is lost in each act; the faults take turns.
    pub failovers: u32,
}

impl DemoOptions {
    /// Three failovers in each act, in labs of this name.
    ///
    /// # Errors
    /// When it cannot be a lab's name.
    pub fn new(lab: &str) -> Result<Self, LabError> {
        let name = |name: &str| -> Result<VmName, LabError> {
            name.parse()
                .map_err(|e: ninefold_model::InvalidName| LabError::Name { name: name.into(), reason: e.to_string() })
        };
        let mut database = VmOptions::postgres(name("db")?, Acknowledge::Memory)?;
        database.non_volatile = Some(NonVolatile::default());
        let mut database_lab = LabConfig::new(lab)?;
        database_lab.disks = disks::supported();
        Ok(Self { lab: LabConfig::new(lab)?, vm: VmOptions::new(name("vm")?), database_lab, database, failovers: 3 })
    }
}

/// Runs a demo. Its labs are gone when this returns, also with an error.
///
/// # Errors
/// When something did not come to its end: no take-over, no answers, no new backup. What was lost or broken is no error:
/// the report says it ([`DemoReport::failures`]).
pub fn run(options: &DemoOptions, audience: &mut dyn Audience) -> Result<DemoReport, LabError> {
    let begin = Instant::now();
    // Found out now and not after the first act.
    options.database.guest.dir()?;
    let redis = redis::play(&options.lab, &options.vm, options.failovers, audience)?;
    let database = database::play(&options.database_lab, &options.database, options.failovers, true, audience)?;
    Ok(DemoReport {
        redis: redis.act,
        acked_writes: redis.acked_writes,
        acked_writes_lost: redis.acked_writes_lost,
        database,
        total_ms: ms(begin.elapsed()),
        accel: redis.machine.accel,
        qemu: redis.machine.qemu,
        tls: options.lab.security == LabSecurity::MutualTls,
        vcpus: options.vm.vcpus,
        memory_mib: options.vm.memory_mib,
    })
}
