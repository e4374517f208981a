//! A report -> the part of a document between two markers, and plots in `plots/` beside the document.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{Report, plot};

const BEGIN: &str = "<!-- generated: measurements -->\n";
const END: &str = "<!-- /generated -->";

pub(super) fn to(report: &Report, document: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let plots = document.parent().unwrap_or(Path::new("")).join("plots");
    fs::create_dir_all(&plots).with_context(|| plots.display().to_string())?;
    let mut part = format!("\n{}\n", report.markdown());
    for line in &report.lines {
        if let Some(svg) = plot::of(report, line) {
            let name = format!("{}.svg", line.figure.key);
            fs::write(plots.join(&name), svg).with_context(|| name.clone())?;
            part += &format!("![{}](plots/{name})\n\n", line.figure.title);
        }
    }
    let text = replaced(&text, &part).with_context(|| document.display().to_string())?;
    fs::write(document, text).with_context(|| document.display().to_string())
}

/// Replaces what is between the markers.
fn replaced(text: &str, part: &str) -> anyhow::Result<String> {
    let Some((before, rest)) = text.split_once(BEGIN) else { bail!("has no line {}", BEGIN.trim()) };
    let Some((_, after)) = rest.split_once(END) else { bail!("has no line {END} behind the first marker") };
    Ok(format!("{before}{BEGIN}{part}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}old\n{END}\nb\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert!(replaced("a\n", "new\n").is_err());
        assert!(replaced(BEGIN, "new\n").is_err());
    }
}
