//! The headers of a request, by their names. Enters: what the parser has found. Leaves: values.

use httparse::Header;

/// The headers of a request.
pub(super) struct Headers<'a, 'h>(pub(super) &'a [Header<'h>]);

impl<'h> Headers<'_, 'h> {
    /// The values of a header.
    pub(super) fn all<'n>(&'n self, name: &'n str) -> impl DoubleEndedIterator<Item = &'h [u8]> + 'n {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// Whether it is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The value of a header that may be there once.
    ///
    /// # Errors
    /// What is wrong with it, for the client.
    pub(super) fn one(&self, name: &str) -> Result<Option<&'h str>, &'static str> {
        let mut all = self.all(name);
        let value = all.next().map(std::str::from_utf8).transpose();
        match (value, all.next()) {
            (Ok(value), None) => Ok(value),
            (Err(_), _) => Err("A header is not UTF-8."),
            (Ok(_), Some(_)) => Err("A header is there twice."),
        }
    }

    /// The items of a header that is a list.
    pub(super) fn list<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'h str> + 'n {
        let lines = self.all(name).filter_map(|line| std::str::from_utf8(line).ok());
        lines.flat_map(|line| line.split(',')).map(str::trim)
    }
}
