//! `portcullis passwd`, and how every command reads a password: from the terminal without echo, or from standard input.

use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;

use portcullis_gateway::{PasswordHash, check_user, set_password};
use zeroize::Zeroizing;

use crate::output::say;
use crate::report::Failure;

/// The longest password, in bytes: MQTT's own bound [MQTT-1.5.6].
const MAX_LEN: u64 = 65_535;

pub(crate) fn passwd(file: &Path, user: &str) -> Result<(), Failure> {
    check_user(user)?;
    let hash = hash(&ask(&format!("Password for {user}: "))?)?;
    let existed = set_password(file, user, &hash)
        .map_err(|error| anyhow::Error::new(error).context(format!("cannot update `{}`", file.display())))?;
    say!("{}: {} {user}", file.display(), if existed { "changed" } else { "added" });
    Ok(())
}

/// Returns the Argon2id hash of a password, in the PHC string format.
pub(crate) fn hash(password: &str) -> Result<String, Failure> {
    PasswordHash::make(password.as_bytes()).map_err(|error| anyhow::anyhow!("cannot hash the password: {error}").into())
}

/// Prompts twice on a terminal, without echo; otherwise reads the first line of standard input.
pub(crate) fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let password = if std::io::stdin().is_terminal() {
        let password = Zeroizing::new(rpassword::prompt_password(prompt)?);
        let again = Zeroizing::new(rpassword::prompt_password("Repeat the password: ")?);
        if password != again {
            return Err(Failure::hint(anyhow::anyhow!("the passwords do not match"), "run the command again"));
        }
        password
    } else {
        read_line()?
    };
    if password.is_empty() {
        return Err(Failure::hint(
            anyhow::anyhow!("the password is empty"),
            "type a password at the prompt, or pass it on the first line of standard input",
        ));
    }
    Ok(password)
}

/// Reads the first line of standard input, without its line ending.
pub(crate) fn read_line() -> Result<Zeroizing<String>, Failure> {
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().take(MAX_LEN + 2).read_line(&mut line)?;
    let len = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(len);
    Ok(line)
}
