//! The frame of all plots: size, title, colours.

/// Colours for light and dark surroundings. The plot has its own background: it must be readable on any page.
const STYLE: &str = "
    .back { fill: #ffffff } text { fill: #24292f; font: 13px sans-serif } .title { font-weight: bold }
    text.small { font-size: 11px }
    .bar { fill: #9aa4b2 } .ours { fill: #2f6fde } .aside { fill: #d5dae1 } .whisker { stroke: #24292f; stroke-width: 1.5 }
    .axis { fill: none; stroke: #9aa4b2 } .curve { fill: none; stroke: #2f6fde; stroke-width: 1.5 }
    .straight { fill: none; stroke: #9aa4b2; stroke-dasharray: 4 3 }
    @media (prefers-color-scheme: dark) {
        .back { fill: #161b22 } text { fill: #e6edf3 } .bar { fill: #6e7a89 } .ours { fill: #5b93f5 }
        .aside { fill: #3d4652 } .whisker { stroke: #e6edf3 } .axis, .straight { stroke: #6e7a89 } .curve { stroke: #5b93f5 }
    }
";

/// A plot of this size in pixels.
pub(super) fn page(width: f64, height: f64, title: &str, content: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<title>{title}</title>
<style>{STYLE}</style>
<rect class="back" width="100%" height="100%" rx="6"/>
{content}</svg>
"#
    )
}
