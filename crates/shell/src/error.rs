//! How a command's end is told: to people in words, to programs as JSON, to shells as an exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use ninefold_control::Refusal;

/// What any command can fail with, whatever it is about.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    /// Who reads our output has gone.
    #[error("the output was closed")]
    OutputClosed,
    #[error("interrupted")]
    Interrupted,
    /// A command that was run for the user ended with this exit code; it has said why itself.
    #[error("the command ended with exit code {0}")]
    Child(u8),
}

impl ShellError {
    /// An I/O error with its object: `.map_err(ShellError::io("read x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        |source| Self::Io { what: what.into(), source: source.into() }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root".into())
            }
            Self::Io { .. } | Self::OutputClosed | Self::Interrupted | Self::Child(_) => None,
        }
    }
}

/// A command's own error. Its text is one line.
pub trait Failure: Error + Sized + 'static {
    /// What is common to all commands, if it is that.
    fn shell(&self) -> Option<&ShellError>;

    /// What the user can do about one that is this command's own.
    fn own_help(&self) -> Option<String>;

    /// Why a keeper has refused, if that is it: its code and what belongs to it, for programs.
    fn refusal(&self) -> Option<&Refusal> {
        None
    }

    /// What the user can do.
    fn help(&self) -> Option<String> {
        self.shell().map_or_else(|| self.own_help(), ShellError::help)
    }

    /// The whole text with its causes.
    fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors of lower crates have their cause in their text already.
            if !text.contains(&cause_text) {
                text += &format!(": {cause_text}");
            }
            source = cause.source();
        }
        text
    }

    /// Tells the user, who has called `program`.
    fn tell(&self, program: &str, json: bool) {
        if matches!(self.shell(), Some(ShellError::Child(_) | ShellError::OutputClosed)) {
            return;
        }
        if json {
            let mut object = serde_json::json!({ "error": self.text(), "help": self.help() });
            if let Some(refusal) = self.refusal() {
                let (code, details) = refusal.parts();
                (object["code"], object["details"]) = (code.into(), details);
            }
            eprintln!("{object}");
            return;
        }
        eprintln!("{program}: {}", self.text());
        if let Some(help) = self.help() {
            eprintln!("help: {help}");
        }
    }

    /// The process's exit code: 130 when it was interrupted, a child's own, else 1.
    fn exit_code(&self) -> ExitCode {
        match self.shell() {
            Some(ShellError::Child(code)) => ExitCode::from(*code),
            Some(ShellError::Interrupted) => ExitCode::from(130),
            _ => ExitCode::FAILURE,
        }
    }
}
