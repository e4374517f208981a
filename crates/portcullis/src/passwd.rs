//! `portcullis passwd`, and asking for passwords.

use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;

use portcullis_gateway::auth::{PasswordHash, check_user, set_password};
use zeroize::Zeroizing;

use crate::report::Failure;

/// Of a password; MQTT's own bound.
const MAX_LEN: u64 = 65_535;

pub(crate) fn passwd(file: &Path, user: &str) -> Result<(), Failure> {
    check_user(user)?;
    let hash = hash(&ask(&format!("Password for {user}: "))?)?;
    let was_there = set_password(file, user, &hash)
        .map_err(|error| anyhow::Error::new(error).context(format!("{} cannot be changed", file.display())))?;
    println!("{}: {} {user}", file.display(), if was_there { "changed" } else { "added" });
    Ok(())
}

/// The hash of a password.
pub(crate) fn hash(password: &str) -> Result<String, Failure> {
    PasswordHash::make(password.as_bytes()).map_err(|error| anyhow::anyhow!("it cannot be hashed: {error}").into())
}

/// Asks twice on a terminal, without showing what is typed; else reads the first line of standard input.
pub(crate) fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let password = if std::io::stdin().is_terminal() {
        let password = Zeroizing::new(rpassword::prompt_password(prompt)?);
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        if password != again {
            return Err(anyhow::anyhow!("the two are not the same").into());
        }
        password
    } else {
        read_line()?
    };
    if password.is_empty() {
        return Err(Failure::hint(anyhow::anyhow!("the password is empty"), "pass it on standard input, or type it"));
    }
    Ok(password)
}

/// The first line of standard input.
pub(crate) fn read_line() -> Result<Zeroizing<String>, Failure> {
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().take(MAX_LEN + 2).read_line(&mut line)?;
    let len = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(len);
    Ok(line)
}
