//! Pictures of documents.

use std::fmt::Write as _;

use segpack_manifests::documents::ExpertsReport;

const LEFT: usize = 64;
const TOP: usize = 56;
/// Widest map, in pixels.
const WIDTH: usize = 1024;
const RIGHT: usize = 110;
const CELL_HEIGHT: usize = 12;

/// Viridis at five places (matplotlib, `_cm_listed.py`), dark for few.
const COLOURS: [[f64; 3]; 5] = [
    [68.0, 1.0, 84.0],
    [59.0, 82.0, 139.0],
    [33.0, 145.0, 140.0],
    [94.0, 201.0, 98.0],
    [253.0, 231.0, 37.0],
];

/// From 0 to 1.
fn colour(share: f64) -> String {
    let place = share.clamp(0.0, 1.0) * 4.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 3"
    )]
    let first = (place.floor() as usize).min(3);
    #[expect(clippy::cast_precision_loss, reason = "0 to 3")]
    let rest = place - first as f64;
    let [a, b] = [COLOURS[first], COLOURS[first + 1]];
    let mix = |i: usize| a[i] + (b[i] - a[i]) * rest;
    format!("rgb({:.0},{:.0},{:.0})", mix(0), mix(1), mix(2))
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn share(n: u64, of: u64) -> f64 {
    n as f64 / of.max(1) as f64
}

/// Layers from top to bottom, experts from left to right, the share that was in memory at the end
/// of each row.
pub fn heat_map(report: &ExpertsReport) -> String {
    let experts = report.experts.max(1) as usize;
    let cell = (WIDTH / experts).clamp(4, 32);
    let most = report
        .layers
        .iter()
        .flat_map(|l| &l.uses)
        .copied()
        .max()
        .unwrap_or(0);
    let (width, height) = (
        LEFT + experts * cell + RIGHT,
        TOP + report.layers.len() * CELL_HEIGHT + 64,
    );
    let mut svg = String::new();
    // writing to a string cannot fail
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="20" font-size="15">Uses of experts in {} forward passes</text>
<text x="{LEFT}" y="{}">expert</text>
<text x="{}" y="{}">in memory</text>"##,
        report.passes,
        TOP - 18,
        LEFT + experts * cell + 8,
        TOP - 18
    );
    let step = (experts / 8).max(1);
    for expert in (0..experts).step_by(step) {
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{}">{expert}</text>"#,
            LEFT + expert * cell,
            TOP - 4
        );
    }
    for (row, layer) in report.layers.iter().enumerate() {
        let y = TOP + row * CELL_HEIGHT;
        let text = y + CELL_HEIGHT - 2;
        let _ = writeln!(
            svg,
            r#"<text x="8" y="{text}">layer {}</text>"#,
            layer.layer
        );
        for (expert, uses) in layer.uses.iter().enumerate() {
            let fill = if *uses == 0 {
                "#eeeeee".to_owned()
            } else {
                colour(share(*uses, most))
            };
            let _ = writeln!(
                svg,
                r#"<rect x="{}" y="{y}" width="{cell}" height="{CELL_HEIGHT}" fill="{fill}"><title>layer {}, expert {expert}: {uses}</title></rect>"#,
                LEFT + expert * cell,
                layer.layer
            );
        }
        let hits = 100.0 * share(layer.hits, layer.hits + layer.misses);
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{text}">{hits:.0} %</text>"#,
            LEFT + experts * cell + 8
        );
    }
    legend(&mut svg, TOP + report.layers.len() * CELL_HEIGHT + 20, most);
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, y: usize, most: u64) {
    let _ = writeln!(svg, r#"<text x="8" y="{}">uses</text>"#, y + 11);
    let _ = writeln!(
        svg,
        r##"<rect x="{LEFT}" y="{y}" width="14" height="14" fill="#eeeeee"/>"##
    );
    let _ = writeln!(svg, r#"<text x="{LEFT}" y="{}">0</text>"#, y + 28);
    for i in 0..=20_u32 {
        let x = LEFT + 24 + i as usize * 8;
        let fill = colour(f64::from(i) / 20.0);
        let _ = writeln!(
            svg,
            r#"<rect x="{x}" y="{y}" width="8" height="14" fill="{fill}"/>"#
        );
    }
    let _ = writeln!(svg, r#"<text x="{}" y="{}">1</text>"#, LEFT + 24, y + 28);
    let _ = writeln!(
        svg,
        r#"<text x="{}" y="{}">{most}</text>"#,
        LEFT + 24 + 20 * 8,
        y + 28
    );
}

#[cfg(test)]
mod tests {
    use segpack_manifests::documents::LayerExperts;

    use super::*;

    #[test]
    fn every_expert_has_a_cell_and_every_layer_a_share() {
        let layer = |layer, uses: &[u64]| LayerExperts {
            layer,
            hits: 3,
            misses: 1,
            uses: uses.to_vec(),
        };
        let report = ExpertsReport {
            format_version: ExpertsReport::VERSION,
            generator: "test".to_owned(),
            passes: 2,
            experts: 3,
            layers: vec![layer(0, &[0, 1, 4]), layer(7, &[4, 0, 0])],
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
