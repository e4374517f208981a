//! Markdown and plots -> the part of a document between two markers, and files in `plots/` beside the document.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

const END: &str = "<!-- /generated -->";

/// What a block of a document has below its text.
pub(crate) struct Plot {
    /// The file's name, without its extension.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// Replaces the block `<!-- generated: NAME -->`.
pub(crate) fn write_block(document: &Path, name: &str, markdown: &str, plots: &[Plot]) -> anyhow::Result<()> {
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let dir = document.parent().unwrap_or(Path::new("")).join("plots");
    let mut part = format!("\n{}\n\n", markdown.trim_end());
    for Plot { name, title, svg } in plots {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        fs::write(dir.join(format!("{name}.svg")), svg).with_context(|| name.clone())?;
        part += &format!("![{title}](plots/{name}.svg)\n\n");
    }
    let text = replaced(&text, name, &part).with_context(|| document.display().to_string())?;
    fs::write(document, text).with_context(|| document.display().to_string())
}

/// Replaces what is between the markers.
fn replaced(text: &str, name: &str, part: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- generated: {name} -->\n");
    let Some((before, rest)) = text.split_once(&begin) else { bail!("has no line {}", begin.trim()) };
    let Some((_, after)) = rest.split_once(END) else { bail!("has no line {END} behind the first marker") };
    Ok(format!("{before}{begin}{part}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let begin = "<!-- generated: this -->\n";
        let other = format!("<!-- generated: other -->\nold\n{END}\n");
        let text = format!("{other}{begin}old\n{END}\nb\n");
        assert_eq!(replaced(&text, "this", "new\n").unwrap(), format!("{other}{begin}new\n{END}\nb\n"));
        assert!(replaced("a\n", "this", "new\n").is_err());
        assert!(replaced(begin, "this", "new\n").is_err());
    }
}
