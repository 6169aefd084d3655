//! A report's curves as SVG files: logarithmic to the right, from zero upwards.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use plotters::prelude::*;

use super::Short;
use crate::report::Plot;

const SIZE: (u32, u32) = (720, 440);
/// Told apart also by those who do not see red and green alike (after Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// Draws each into the directory, which is made if need be; the files.
///
/// # Errors
/// A file cannot be written, or a plot has no points.
pub fn draw_all(plots: &[Plot], directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create the directory {}", directory.display()))?;
    plots
        .iter()
        .map(|plot| {
            let file = directory.join(format!("{}.svg", plot.file));
            fs::write(&file, svg(plot)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
            Ok(file)
        })
        .collect()
}

/// The text of the file.
///
/// # Errors
/// It has no points.
pub fn svg(plot: &Plot) -> Result<String> {
    let mut text = String::new();
    draw(plot, SVGBackend::with_string(&mut text, SIZE).into_drawing_area())
        .with_context(|| format!("cannot draw {}", plot.file))?;
    Ok(text)
}

fn draw(plot: &Plot, area: DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Result<()> {
    let points = || plot.lines.iter().flat_map(|line| &line.points);
    ensure!(points().count() > 0, "it has no points");
    let left = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let right = points().map(|point| point.0).fold(0.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    ensure!(left > 0.0, "a logarithmic axis begins above zero");
    let headroom = 1.1 + 0.06 * plot.lines.len() as f64;
    area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        // The outermost points stand inside the frame, also if there is but one, and the legend
        // above them.
        .build_cartesian_2d((left / 1.2..right * 1.2).log_scale(), 0.0..(top * headroom).max(1.0))
        .map_err(|error| anyhow!("{error}"))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc(&plot.x)
        .y_desc(&plot.y)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 12))
        .draw()
        .map_err(|error| anyhow!("{error}"))?;
    for (line, colour) in plot.lines.iter().zip(COLOURS.into_iter().cycle()) {
        let points = line.points.iter().copied();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))
            .map_err(|error| anyhow!("{error}"))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 12))
        .draw()
        .map_err(|error| anyhow!("{error}"))?;
    area.present().map_err(|error| anyhow!("{error}"))
}

/// Of an axis: whole numbers without a fraction.
fn label(number: f64) -> String {
    if number.fract() == 0.0 && number >= 0.0 {
        return super::count(number as u64);
    }
    Short(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Line;

    fn plot() -> Plot {
        let line = |name: &str, height: f64| Line {
            name: name.into(),
            points: vec![(1.0, height), (1_000.0, height * 1.1), (100_000.0, height * 2.0)],
        };
        Plot {
            file: "flows".into(),
            title: "Established <packets> & flows".into(),
            x: "live flows".into(),
            y: "ns per packet".into(),
            lines: vec![line("IPv4", 60.0), line("IPv6", 75.0)],
        }
    }

    #[test]
    fn a_plot_has_its_words_and_lines() {
        let text = svg(&plot()).expect("points");
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        for word in ["live flows", "ns per packet", "IPv4", "IPv6", "&lt;packets&gt; &amp;"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(text.matches("<polyline").count() >= 2, "{text}");
    }

    #[test]
    fn a_plot_without_points_is_refused() {
        assert!(svg(&Plot { lines: Vec::new(), ..plot() }).is_err());
    }
}
