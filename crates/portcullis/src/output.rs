//! What commands print on standard output. `println!` panics if nobody reads it any more, as behind `head`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::process::exit;

/// Prints a line on standard output, like `println!`.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

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
            eprintln!("error: cannot write to standard output: {error}");
            exit(1);
        }
    }
}
