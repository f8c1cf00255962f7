//! Pictures of documents.

use std::fmt::{Display, Write as _};

use segpack_manifests::documents::{ExpertsReport, LayerExperts};

const LEFT: usize = 64;
const TOP: usize = 56;
/// Widest map, in pixels.
const WIDTH: usize = 1024;
const RIGHT: usize = 110;
const CELL_HEIGHT: usize = 12;
/// Colour of an expert that was not used.
const UNUSED: &str = "#eeeeee";

/// Viridis at five points (matplotlib, `_cm_listed.py`), dark for few.
const COLOURS: [[f64; 3]; 5] = [
    [68.0, 1.0, 84.0],
    [59.0, 82.0, 139.0],
    [33.0, 145.0, 140.0],
    [94.0, 201.0, 98.0],
    [253.0, 231.0, 37.0],
];

/// The colour of a share from 0 to 1.
fn colour(share: f64) -> String {
    let position = share.clamp(0.0, 1.0) * 4.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 3"
    )]
    let first = (position.floor() as usize).min(3);
    #[expect(clippy::cast_precision_loss, reason = "0 to 3")]
    let rest = position - first as f64;
    let [a, b] = [COLOURS[first], COLOURS[first + 1]];
    let mix = |i: usize| a[i] + (b[i] - a[i]) * rest;
    format!("rgb({:.0},{:.0},{:.0})", mix(0), mix(1), mix(2))
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn share(n: u64, of: u64) -> f64 {
    n as f64 / of.max(1) as f64
}

/// A heat map: layers from top to bottom, experts from left to right, and the hit rate of the cache
/// at the end of each row.
pub(crate) fn heat_map(report: &ExpertsReport) -> String {
    let map = Map::of(report);
    let mut svg = Svg::default();
    map.head(&mut svg);
    for (row, layer) in report.layers.iter().enumerate() {
        map.layer(&mut svg, TOP + row * CELL_HEIGHT, layer);
    }
    map.legend(&mut svg, TOP + report.layers.len() * CELL_HEIGHT + 20);
    svg.0.push_str("</svg>\n");
    svg.0
}

/// Elements, one per line.
#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, element: std::fmt::Arguments<'_>) {
        // writing to a string cannot fail
        let _ = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: usize, y: usize, text: impl Display) {
        self.line(format_args!(r#"<text x="{x}" y="{y}">{text}</text>"#));
    }
}

/// Measures of a heat map, in pixels, and what its colours mean.
struct Map<'a> {
    report: &'a ExpertsReport,
    experts: usize,
    cell_width: usize,
    max_uses: u64,
}

impl<'a> Map<'a> {
    fn of(report: &'a ExpertsReport) -> Self {
        let experts = report.experts.max(1) as usize;
        let uses = report.layers.iter().flat_map(|l| &l.uses);
        Self {
            report,
            experts,
            cell_width: (WIDTH / experts).clamp(4, 32),
            max_uses: uses.copied().max().unwrap_or(0),
        }
    }

    /// The left edge of an expert's column.
    fn x(&self, expert: usize) -> usize {
        LEFT + expert * self.cell_width
    }

    /// Where the hit rates stand.
    fn right(&self) -> usize {
        self.x(self.experts) + 8
    }

    /// The title and the numbers of some experts.
    fn head(&self, svg: &mut Svg) {
        let width = self.x(self.experts) + RIGHT;
        let height = TOP + self.report.layers.len() * CELL_HEIGHT + 64;
        svg.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">"#
        ));
        svg.line(format_args!(
            r##"<rect width="100%" height="100%" fill="#ffffff"/>"##
        ));
        svg.line(format_args!(
            r#"<text x="{LEFT}" y="20" font-size="15">Uses of experts in {} forward passes{}</text>"#,
            self.report.passes,
            match self.report.restricted_experts.is_empty() {
                true => "",
                false => "; routers restricted: not the model",
            }
        ));
        svg.text(LEFT, TOP - 18, "expert");
        svg.text(self.right(), TOP - 18, "hit rate");
        let step = (self.experts / 8).max(1);
        for expert in (0..self.experts).step_by(step) {
            svg.text(self.x(expert), TOP - 4, expert);
        }
    }

    /// A row of cells.
    fn layer(&self, svg: &mut Svg, y: usize, layer: &LayerExperts) {
        let number = layer.layer;
        let baseline = y + CELL_HEIGHT - 2;
        svg.text(8, baseline, format_args!("layer {number}"));
        for (expert, uses) in layer.uses.iter().enumerate() {
            let (x, width, fill) = (self.x(expert), self.cell_width, self.fill(*uses));
            svg.line(format_args!(
                r#"<rect x="{x}" y="{y}" width="{width}" height="{CELL_HEIGHT}" fill="{fill}"><title>layer {number}, expert {expert}: {uses}</title></rect>"#
            ));
        }
        let hit_rate = 100.0 * share(layer.hits, layer.hits + layer.misses);
        svg.text(self.right(), baseline, format_args!("{hit_rate:.0} %"));
    }

    fn fill(&self, uses: u64) -> String {
        match uses {
            0 => UNUSED.to_owned(),
            uses => colour(share(uses, self.max_uses)),
        }
    }

    /// The scale of colours, from 0 to the most uses.
    fn legend(&self, svg: &mut Svg, y: usize) {
        svg.text(8, y + 11, "uses");
        svg.line(format_args!(
            r#"<rect x="{LEFT}" y="{y}" width="14" height="14" fill="{UNUSED}"/>"#
        ));
        svg.text(LEFT, y + 28, 0);
        for i in 0..=20_u32 {
            let x = LEFT + 24 + i as usize * 8;
            let fill = colour(f64::from(i) / 20.0);
            svg.line(format_args!(
                r#"<rect x="{x}" y="{y}" width="8" height="14" fill="{fill}"/>"#
            ));
        }
        svg.text(LEFT + 24, y + 28, 1);
        svg.text(LEFT + 24 + 20 * 8, y + 28, self.max_uses);
    }
}

#[cfg(test)]
mod tests {
    use segpack_manifests::documents::LayerExperts;

    use super::*;

    fn layer(layer: u32, uses: &[u64]) -> LayerExperts {
        LayerExperts {
            layer,
            hits: 3,
            misses: 1,
            uses: uses.to_vec(),
        }
    }

    #[test]
    fn every_expert_has_a_cell_and_every_layer_a_share() {
        let report = ExpertsReport {
            format_version: ExpertsReport::VERSION,
            generator: "test".to_owned(),
            passes: 2,
            experts: 3,
            layers: vec![layer(0, &[0, 1, 4]), layer(7, &[4, 0, 0])],
            restricted_experts: std::collections::BTreeMap::new(),
        };
        let svg = heat_map(&report);
        assert_eq!(svg.matches("<title>").count(), 6);
        assert!(
            svg.contains("layer 7, expert 0: 4") && svg.contains("75 %"),
            "{svg}"
        );
        assert_eq!(
            svg.matches(&colour(1.0)).count(),
            3,
            "two cells and the legend's last"
        );
    }

    #[test]
    fn colours_run_from_dark_to_light() {
        assert_eq!(
            [colour(0.0), colour(1.0), colour(9.0)],
            ["rgb(68,1,84)", "rgb(253,231,37)", "rgb(253,231,37)"]
        );
    }
}
