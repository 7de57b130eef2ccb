//! Reads at random offsets by other crates: `peers CRATE FORMAT THREADS READS IMAGE [BACKING]...` prints the microseconds of a read, of all
//! cores and by the clock. `peers write PATTERN THREADS IMAGE` prints the seconds of writes by imago. `peers convert CRATE FORMAT SOURCE FORMAT
//! TARGET` converts.

#[path = "../../common/random_reads.rs"]
mod random_reads;
#[path = "../../common/writes.rs"]
mod writes;

mod convert;

use std::error::Error;
use std::path::PathBuf;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::vmdk::Vmdk;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use random_reads::{Cost, measure};
use virtdisk::{Image, ImageFormat, ReadAt};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", pattern, threads, image] => return write(pattern.parse()?, threads.parse()?, image),
        ["convert", "imago", from, source, to, target] => return convert::imago(from, source, to, target),
        ["convert", "virtdisk", from, source, to, target] => return convert::virtdisk(from, source, to, target),
        _ => {}
    }
    let [name, format, threads, reads, image, backing @ ..] = args.as_slice() else {
        return Err("expected CRATE FORMAT THREADS READS IMAGE [BACKING]...".into());
    };
    let run = match name.as_str() {
        "imago" => imago,
        "virtdisk" => virtdisk,
        _ => return Err(format!("unknown crate '{name}'").into()),
    };
    let cost = run(format, image, backing, threads.parse()?, reads.parse()?)?;
    println!("{cost}");
    Ok(())
}

fn imago(format: &str, image: &str, _: &[String], threads: u64, reads: u64) -> Result<Cost, Box<dyn Error>> {
    let disk = open_imago(format, image)?;
    Ok(measure(disk.size(), threads, reads, |buf, offset| disk.read(buf, offset).unwrap()))
}

fn open_imago(format: &str, image: &str) -> Result<FormatAccess<File>, Box<dyn Error>> {
    Ok(match format {
        "raw" => FormatAccess::new(Raw::builder_path(image).open(PermissiveImplicitOpenGate::default())?),
        "qcow2" => FormatAccess::new(Qcow2::<File>::builder_path(image).open(PermissiveImplicitOpenGate::default())?),
        "vmdk" => FormatAccess::new(Vmdk::<File>::builder_path(image).open(PermissiveImplicitOpenGate::default())?),
        _ => return Err(format!("imago does not read {format}").into()),
    })
}

fn write(pattern: usize, threads: u64, image: &str) -> Result<(), Box<dyn Error>> {
    let (_, len, step) = writes::PATTERNS[pattern];
    let image = Qcow2::<File>::builder_path(image).write(true).open(PermissiveImplicitOpenGate::default())?;
    let disk = FormatAccess::new(image);
    let seconds = writes::measure(
        (len, step),
        threads,
        |buf, offset| disk.write(buf, offset).unwrap(),
        || {
            disk.flush().unwrap();
            disk.sync().unwrap();
        },
    );
    println!("{seconds}");
    Ok(())
}

fn virtdisk(format: &str, image: &str, backing: &[String], threads: u64, reads: u64) -> Result<Cost, Box<dyn Error>> {
    let format = virtdisk_format(format)?;
    let backing: Vec<PathBuf> = backing.iter().map(PathBuf::from).collect();
    let disk = Image::open_chain(image, Some(format), &backing)?;
    Ok(measure(disk.len(), threads, reads, |buf, offset| disk.read_exact_at(offset, buf).unwrap()))
}

fn virtdisk_format(format: &str) -> Result<ImageFormat, Box<dyn Error>> {
    Ok(match format {
        "raw" => ImageFormat::Raw,
        "qcow2" => ImageFormat::Qcow2,
        "vmdk" => ImageFormat::Vmdk,
        "vdi" => ImageFormat::Vdi,
        "vhdx" => ImageFormat::Vhdx,
        _ => return Err(format!("virtdisk does not know {format}").into()),
    })
}
