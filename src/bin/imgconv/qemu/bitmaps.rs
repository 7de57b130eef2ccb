//! `--bitmaps` and `--skip-broken-bitmaps` of `qemu-img convert`.

use diskimage::{BitmapPolicy, Image, Report, Value};

use super::getopt::Parsed;
use super::message::{self, Failed, NAME};
use super::target::Target;

/// What the options ask for, if the images are such that qemu-img does it.
pub fn policy(parsed: &Parsed, source: &Image, target: &Target) -> Result<BitmapPolicy, Failed> {
    let skip = parsed.flag("skip-broken-bitmaps");
    if !parsed.flag("bitmaps") {
        return match skip {
            true => Err(Failed::new("Use of --skip-broken-bitmaps requires --bitmaps")),
            false => Ok(BitmapPolicy::Omit),
        };
    }
    if parsed.operands.len() > 2 {
        return Err(Failed::new("Copying bitmaps only possible with single source"));
    }
    if property(&source.info().specific, "compat") != Some(&Value::from("1.1")) {
        return Err(Failed::new("Source lacks bitmap support"));
    }
    if let Some(name) = inconsistent(source).filter(|_| !skip) {
        let advice = "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it";
        return Err(Failed::new(format!("Cannot copy inconsistent bitmap '{name}'\n{advice}")));
    }
    let is_version_2 = target.option("compat").is_some_and(|compat| ["0.10", "v2"].contains(&compat));
    if target.format.name() != "qcow2" || is_version_2 {
        return Err(Failed::new(format!("Format driver '{}' does not support bitmaps", target.format.name())));
    }
    Ok(if skip { BitmapPolicy::SkipInconsistent } else { BitmapPolicy::Copy })
}

/// The name of a bitmap whose bits are wrong. The order of qemu-img is from the last one to the first.
fn inconsistent(image: &Image) -> Option<String> {
    let Some(Value::List(bitmaps)) = property(&image.info().specific, "bitmaps") else { return None };
    bitmaps.iter().rev().find_map(|bitmap| {
        let Value::Map(properties) = bitmap else { return None };
        match (property(properties, "flags"), property(properties, "name")) {
            (Some(Value::List(flags)), Some(Value::Text(name))) if flags.contains(&Value::from("in-use")) => {
                Some(name.to_text().into_owned())
            }
            _ => None,
        }
    })
}

fn property<'a>(properties: &'a [(&'static str, Value)], name: &str) -> Option<&'a Value> {
    properties.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Warns of what was left out.
pub fn warn(report: &Report) {
    for name in report.skipped_bitmaps.iter().rev() {
        message::line(&format!("{NAME}: warning: Skipping inconsistent bitmap '{name}'"));
    }
}
