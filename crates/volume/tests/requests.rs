//! What a guest's request costs, and when it is over.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Image, Op, ServedVolume, VolumeError, WriteLog};

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A huge image that keeps nothing. Writes to it wait while it is shut.
#[derive(Debug, Clone, Default)]
struct Void(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    begun: usize,
    done: usize,
}

impl Void {
    fn shut(&self, shut: bool) {
        self.0.state.lock().unwrap().shut = shut;
        self.0.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        drop(self.0.changed.wait_while(self.0.state.lock().unwrap(), |state| !until(state)).unwrap());
    }
}

impl Image for Void {
    fn size(&self) -> u64 {
        1 << 45
    }
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.fill(0);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
        let mut state = self.0.state.lock().unwrap();
        state.begun += 1;
        self.0.changed.notify_all();
        let mut state = self.0.changed.wait_while(state, |state| state.shut).unwrap();
        state.done += 1;
        self.0.changed.notify_all();
        Ok(())
    }
    fn zero(&self, at: u64, _: u64, _: bool) -> Result<(), VolumeError> {
        self.write(at, &[])
    }
    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

fn serve(void: &Void) -> ServedVolume {
    let served =
        ServedVolume::new(Box::new(void.clone()), WriteLog::in_memory().unwrap(), Acknowledge::Memory).unwrap();
    served.go_through();
    served
}

/// A discard of 32 TiB holds no more memory than one of a sector: with much held it is delayed by as little. (By its length it
/// would be delayed for eight days.)
#[test]
fn a_discard_is_charged_what_it_costs() {
    let served = serve(&Void::default());
    served.hold();
    for n in 0..66u64 {
        Handler::write(&served, n << 20, vec![7; 1 << 20], false).unwrap();
    }
    assert!(served.pressure());
    let before = served.held();
    Handler::zero(&served, 0, 1 << 45, true, false).unwrap();
    assert!(served.held() - before < 1024);
}

/// A discard that goes through is done in pieces, and ends between two of them when its client does.
#[test]
fn a_long_discard_ends_with_its_client() {
    let void = Void::default();
    let served = serve(&void);
    void.shut(true);
    std::thread::scope(|scope| {
        let discard = scope.spawn(|| Handler::zero(&served, 0, 1 << 40, true, false));
        void.wait(|state| state.begun == 1);
        Handler::ended(&served);
        void.shut(false);
        discard.join().unwrap().unwrap_err();
    });
    assert_eq!(void.0.state.lock().unwrap().done, 1);
    assert!(served.failure().is_none(), "that says nothing of the disk");
    Handler::begins(&served);
    Handler::write(&served, 0, vec![1], false).unwrap();
}

/// The VM is not this host's any more while a write of its is at the disk: nobody else writes there before that is over.
#[test]
fn what_is_under_way_is_over_before_a_session_begins() {
    let void = Void::default();
    let served = serve(&void);
    let batch = || [Op::Write { at: 0, data: vec![2; 512].into() }].into_iter().collect();
    void.shut(true);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| Handler::write(&served, 0, vec![1; 512], false));
        void.wait(|state| state.begun == 1);
        served.discard();
        served.settle(Duration::from_millis(1)).unwrap_err();
        assert!(served.apply(&batch()).is_err());
        void.shut(false);
        write.join().unwrap().unwrap();
    });
    served.settle(LIMIT).unwrap();
    served.apply(&batch()).unwrap();
    served.receive(Epoch(1), batch());
    served.wait_durable(Epoch(1), LIMIT).unwrap();
}
