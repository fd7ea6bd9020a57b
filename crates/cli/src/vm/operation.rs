//! What takes longer than an answer: carried out with a bar, listed, followed, cancelled.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use ninefold_control::operation::State;
use ninefold_control::{ClientError, Operation, OperationId, Refusal, Request};
use ninefold_model::event::EventKind;
use ninefold_shell::refusal::{operation_name, words as refused};
use ninefold_shell::{Output, ShellError, interrupt, output, progress};
use serde::Serialize;

use super::keepers::{Keeper, Where};
use crate::error::{CliError, NAME};

/// Between two looks at how far it is, and whether somebody wants to interrupt it.
const EVERY: Duration = Duration::from_millis(200);

/// Show what the VM's keepers are at that takes its time, or follow or cancel one of it
///
/// Each keeper knows its own, those that run and the latest that have ended, until it is started anew.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm operations\n  \
    ninefold vm operations 1764489600000000-3 --wait\n  \
    ninefold vm operations 1764489600000000-3 --cancel\n\n\
    With --json: operations [{host, id, kind, token, state (running, done, failed), progress {done, total, unit}, outcome, error {code, details}}].")]
pub struct OperationsArgs {
    /// This one alone
    #[arg(value_name = "ID")]
    operation: Option<OperationId>,
    /// Wait until it has ended
    #[arg(long, requires = "operation", conflicts_with = "cancel")]
    wait: bool,
    /// End it before its time, where that is possible
    #[arg(long, requires = "operation")]
    cancel: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Serialize)]
struct Listed {
    host: String,
    #[serde(flatten)]
    operation: Operation,
}

#[derive(Debug, Serialize)]
struct Operations {
    operations: Vec<Listed>,
}

pub fn run(args: &OperationsArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let mut operations = Vec::new();
    let mut refusal = None;
    for keeper in &keepers.all {
        let found = match args.operation {
            None => keeper.client.operations()?,
            Some(id) => match keeper.client.operation(id, Duration::ZERO) {
                Ok(_) if args.cancel => vec![keeper.client.cancel(id)?],
                Ok(_) if args.wait => {
                    // How it has ended is shown, also if it came to nothing.
                    match until_end(keeper, id, "it is waited for", false, None) {
                        Ok(_) | Err(CliError::Keeper(ClientError::Refused(_))) => {}
                        Err(error) => return Err(error),
                    }
                    vec![keeper.client.operation(id, Duration::ZERO)?]
                }
                Ok(operation) => vec![operation],
                // It is another keeper's.
                Err(error @ ClientError::Refused(_)) => {
                    refusal.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
        };
        operations.extend(found.into_iter().map(|operation| Listed { host: keeper.host.clone(), operation }));
    }
    if let (true, Some(error)) = (operations.is_empty(), refusal) {
        return Err(error.into());
    }
    let all = Operations { operations };
    Ok(output.show(&all, || table(&all.operations))?)
}

fn table(operations: &[Listed]) -> String {
    let mut table = output::table(&["HOST", "OPERATION", "KIND", "STATE"]);
    for Listed { host, operation } in operations {
        let kind = operation_name(operation.kind);
        table.add_row([host.as_str(), &operation.id.to_string(), kind, &state(&operation.state)]);
    }
    output::text(&table)
}

fn state(state: &State) -> String {
    match state {
        State::Running { progress: Some(p) } if p.total > 0 => {
            format!("running, {} %", p.done.min(p.total) * 100 / p.total)
        }
        State::Running { .. } => "running".into(),
        State::Done { .. } => "done".into(),
        State::Failed { error: Refusal::Cancelled } => "cancelled".into(),
        State::Failed { error } => format!("failed: {}", output::brief(&refused(error))),
    }
}

/// Has it done, with a bar that says `text`. Answers the event that tells most of its end, if one does. Interrupted, it cancels what can be cancelled,
/// and says of all else that it goes on.
///
/// # Errors
/// It is refused, or fails.
pub fn carry_out(keeper: &Keeper, request: &Request, text: &str) -> Result<Option<EventKind>, CliError> {
    let operation = keeper.client.begin(request, None)?;
    until_end(keeper, operation.id, text, true, None)
}

/// The same, for as long at most: what it waits for may not answer. It goes on then.
///
/// # Errors
/// As [`carry_out`]; or it has not ended in time.
pub fn carry_out_within(
    keeper: &Keeper,
    request: &Request,
    text: &str,
    limit: Duration,
) -> Result<Option<EventKind>, CliError> {
    let operation = keeper.client.begin(request, None)?;
    until_end(keeper, operation.id, text, true, Some(limit))
}

/// Waits until it has ended. Interrupted, it cancels what is this command's `own`, where that is possible: who only watches ends nothing.
fn until_end(
    keeper: &Keeper,
    id: OperationId,
    text: &str,
    own: bool,
    limit: Option<Duration>,
) -> Result<Option<EventKind>, CliError> {
    let begun = Instant::now();
    let interrupted = interrupt::stop_flag()?;
    let bar = progress::spinner(text);
    let end = loop {
        let operation = match keeper.client.operation(id, EVERY) {
            Ok(operation) => operation,
            Err(ClientError::Refused(Refusal::EarlierKeeper { .. })) => {
                break Err(CliError::Restarted { host: keeper.host.clone() });
            }
            Err(error) => break Err(error.into()),
        };
        match operation.state {
            State::Done { outcome } => break Ok(outcome.map(|event| *event)),
            State::Failed { error } => break Err(ClientError::Refused(error).into()),
            State::Running { progress } => progress::operation(&bar, progress.as_ref()),
        }
        if let Some(limit) = limit.filter(|limit| begun.elapsed() >= *limit) {
            let what = format!("the end of the {}", operation_name(operation.kind));
            break Err(CliError::TimedOut { what, seconds: limit.as_secs() });
        }
        if interrupted.load(Ordering::Relaxed) {
            let cancelled = own && operation.kind.is_cancellable() && keeper.client.cancel(id).is_ok();
            let name = operation_name(operation.kind);
            let says = match cancelled {
                true => format!("the {name} is cancelled"),
                false => format!("the {name} goes on: `ninefold vm operations {id} --wait` follows it"),
            };
            progress::note(NAME, &bar, &says);
            break Err(ShellError::Interrupted.into());
        }
    };
    bar.finish_and_clear();
    end
}
