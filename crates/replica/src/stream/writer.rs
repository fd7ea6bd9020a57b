//! One pass into a `Write`.

use std::io::Write;

use ninefold_model::Term;

use super::encoder::{EncodeStats, PageEncoder};
use super::error::StreamError;
use super::layout::PageRun;
use super::record::{DeviceState, MAX_OUTPUT, MAX_VOLUME_WRITES, Output, Pass, PassKind, Record, Totals, VolumeWrites};

/// Bytes of device state or channel output in one record.
const PART_BYTES: usize = 1 << 20;

/// Writes one record by one `write_all`. `scratch` is reused between calls and holds nothing between them.
///
/// # Errors
/// [`StreamError::TooLarge`] (nothing was written), [`StreamError::Io`].
pub fn write_record<W: Write + ?Sized>(
    out: &mut W,
    scratch: &mut Vec<u8>,
    record: &Record<'_>,
) -> Result<u32, StreamError> {
    scratch.clear();
    let crc = record.encode(scratch)?;
    out.write_all(scratch).map_err(StreamError::Io)?;
    Ok(crc)
}

/// A pass that has begun. Each record goes out by one `write_all`, so that a writer behind a lock can be shared with the
/// one that sends heartbeats. Dropped before [`end`](Self::end), it leaves a pass that the receiver never takes.
#[derive(Debug)]
pub struct PassWriter<'a, W: Write + ?Sized> {
    out: &'a mut W,
    scratch: &'a mut Vec<u8>,
    pass: Pass,
    totals: Totals,
}

impl<'a, W: Write + ?Sized> PassWriter<'a, W> {
    /// Writes `Begin`.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn begin(out: &'a mut W, scratch: &'a mut Vec<u8>, pass: Pass, term: Term) -> Result<Self, StreamError> {
        write_record(out, scratch, &Record::Begin { pass, term })?;
        Ok(Self { out, scratch, pass, totals: Totals::default() })
    }

    /// Writes the pages of `runs`, whose contents stand one after another in `bytes`.
    ///
    /// # Errors
    /// As [`PageEncoder::encode`].
    pub fn pages(
        &mut self,
        encoder: &mut PageEncoder,
        runs: &[PageRun],
        bytes: &[u8],
    ) -> Result<EncodeStats, StreamError> {
        let stats = encoder.encode(self.out, &self.pass, runs, bytes)?;
        self.totals.add(&stats.totals);
        Ok(stats)
    }

    /// Writes pages that are known to be zero.
    ///
    /// # Errors
    /// As [`PageEncoder::encode`].
    pub fn zeros(
        &mut self,
        encoder: &mut PageEncoder,
        runs: impl IntoIterator<Item = PageRun>,
    ) -> Result<EncodeStats, StreamError> {
        let stats = encoder.encode_zeros(self.out, &self.pass, runs)?;
        self.totals.add(&stats.totals);
        Ok(stats)
    }

    /// Writes device state; pieces given in several calls belong one after another.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn device_state(&mut self, state: &[u8]) -> Result<(), StreamError> {
        for bytes in state.chunks(PART_BYTES) {
            let offset = self.totals.state_bytes;
            self.totals.state_bytes += bytes.len() as u64;
            self.part(&Record::DeviceState(DeviceState { pass: self.pass, offset, bytes }))?;
        }
        Ok(())
    }

    /// Writes all that the guest wrote to `channel` in this epoch. Call it once for each channel.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn channel_output(&mut self, channel: u8, output: &[u8]) -> Result<(), StreamError> {
        let mut offset = 0;
        for bytes in output.chunks(PART_BYTES) {
            self.part(&Record::ChannelOutput(Output { pass: self.pass, channel, offset, bytes }))?;
            offset += bytes.len() as u64;
            self.totals.output_bytes += bytes.len() as u64;
            self.bounded("output of a checkpoint", self.totals.output_bytes, MAX_OUTPUT)?;
        }
        Ok(())
    }

    /// Writes operations on `volume`: whole ones, at most 4 MiB of them. Calls for one volume follow each other; answers
    /// where the next one's bytes stand.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`], [`StreamError::Io`].
    pub fn volume_writes(&mut self, volume: u16, offset: u64, bytes: &[u8]) -> Result<u64, StreamError> {
        self.totals.volume_bytes += bytes.len() as u64;
        self.bounded("volume writes of a checkpoint", self.totals.volume_bytes, MAX_VOLUME_WRITES)?;
        self.part(&Record::VolumeWrites(VolumeWrites { pass: self.pass, volume, offset, bytes }))?;
        Ok(offset + bytes.len() as u64)
    }

    /// A checkpoint that no reader would take is not written either: a log that has it could not be read again.
    fn bounded(&self, what: &'static str, length: u64, bound: u64) -> Result<(), StreamError> {
        if self.pass.kind == PassKind::Checkpoint && length > bound {
            return Err(StreamError::TooLarge { what, length, bound });
        }
        Ok(())
    }

    /// Lets go of the connection, so that something else can be sent in the middle of the pass: answers what
    /// [`PassWriter::resume`] needs.
    pub fn pause(self) -> Totals {
        self.totals
    }

    /// Goes on with a pass that was paused.
    pub fn resume(out: &'a mut W, scratch: &'a mut Vec<u8>, pass: Pass, totals: Totals) -> Self {
        Self { out, scratch, pass, totals }
    }

    /// Counts in what an encoder has sent over another connection.
    pub fn add(&mut self, totals: &Totals) {
        self.totals.add(totals);
    }

    /// Writes `End` with the totals, and flushes.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn end(self) -> Result<Totals, StreamError> {
        let Self { out, scratch, pass, totals } = self;
        write_record(out, scratch, &Record::End { pass, totals })?;
        out.flush().map_err(StreamError::Io)?;
        Ok(totals)
    }

    fn part(&mut self, record: &Record<'_>) -> Result<(), StreamError> {
        let crc = write_record(self.out, self.scratch, record)?;
        self.totals.records += 1;
        self.totals.digest = self.totals.digest.wrapping_add(crc.into());
        Ok(())
    }
}
