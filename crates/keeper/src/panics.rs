//! A panic ends the whole keeper. A thread that is gone while the others go on is worse than none: heartbeats would still say
//! that all is well, and the VM would be called protected for ever. When the keeper ends, its QEMU does, and the backup takes over.

/// From now on a panic in any thread ends the process by SIGABRT, once it has been reported as ever.
pub fn end_the_process() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
