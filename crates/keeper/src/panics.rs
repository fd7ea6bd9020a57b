//! A panic ends the whole keeper. A thread that is gone while the others go on is worse than none: heartbeats would still say
//! that all is well, and the VM would be called protected for ever. When the keeper ends, its QEMU does, and the backup takes over.

use std::process;
use std::thread;
use std::time::Duration;

/// How long the report may take: whoever takes standard error may hang.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// From now on a panic in any thread ends the process by SIGABRT, once it has been reported as ever, or could have been.
pub fn end_the_process() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(REPORT_LIMIT);
            process::abort();
        });
        ninefold_logging::stderr::settle();
        report(panic);
        process::abort();
    }));
}
