//! What commands print. `println!` and `eprintln!` panic if nobody reads it any more, as behind `head`, or a disk is full.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::process::exit;

/// Prints a line on standard output, like `println!`.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Prints a line on standard error, like `eprintln!`. A report that nobody can read is no reason to stop.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::error_line(format_args!($($text)*)) };
}
pub(crate) use complain;

/// Prints a line on standard error, if that is possible.
pub(crate) fn error_line(text: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a line. Ends the process if that is not possible.
pub(crate) fn line(text: Arguments<'_>) {
    end_on_error(writeln!(io::stdout().lock(), "{text}"));
}

/// Prints bytes. Ends the process if that is not possible.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    end_on_error(out.write_all(bytes).and_then(|()| out.flush()));
}

fn end_on_error(result: io::Result<()>) {
    match result {
        Ok(()) => {}
        // The reader has what it wants.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            complain!("error: cannot write to standard output: {error}");
            exit(1);
        }
    }
}
