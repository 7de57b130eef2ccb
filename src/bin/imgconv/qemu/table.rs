//! The commands and options of qemu-img, and what becomes of each here and in the other command line.
//!
//! The help is made from this table, and so is the section "Coming from qemu-img" of the README.

use std::fmt::Write as _;

use super::getopt::Parsed;
use super::{
    Outcome, amend, bitmap, check, commit, compare, convert, create, dd, info, map, measure, rebase, refused, resize,
    snapshot,
};

/// A command of qemu-img.
pub struct Command {
    pub name: &'static str,
    pub purpose: &'static str,
    /// The words that are not options.
    pub operands: &'static str,
    rows: &'static [Row],
    pub run: fn(&Parsed) -> Outcome,
    /// The equivalent of `imgconv`, where that differs.
    pub imgconv: &'static str,
}

/// An option.
#[derive(Debug)]
pub struct Row {
    pub short: Option<char>,
    pub long: &'static str,
    /// What its value is called, or "" for a switch.
    pub value: &'static str,
    help: &'static str,
    pub note: Note,
    /// The option of `imgconv`, or what it does instead, where that differs.
    imgconv: &'static str,
}

/// What an option does here, compared with qemu-img.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Same,
    /// Accepted; it asks for what is done anyway, or for nothing that the result shows.
    NoEffect(&'static str),
    Differs(&'static str),
    Refused(&'static str),
}

const fn row(short: char, long: &'static str, value: &'static str, help: &'static str) -> Row {
    let short = if short == ' ' { None } else { Some(short) };
    Row { short, long, value, help, note: Note::Same, imgconv: "" }
}

impl Row {
    const fn note(self, note: Note) -> Row {
        Row { note, ..self }
    }

    const fn imgconv(self, imgconv: &'static str) -> Row {
        Row { imgconv, ..self }
    }
}

const HELP: Row = row('h', "help", "", "print this help");
const QUIET: Row = row('q', "quiet", "", "print errors only");
const PROGRESS: Row = row('p', "progress", "", "print the progress in percent to standard output")
    .imgconv("a bar on standard error, if that is a terminal");
const SHARE: Row = row('U', "force-share", "", "open the image even if another program writes to it");
const OBJECT: Row = row(
    ' ',
    "object",
    "OBJDEF",
    "a secret or certificates: secret,id=ID,file=PATH or secret,id=ID,data=TEXT or tls-creds-x509,id=ID,endpoint=client,dir=PATH",
);
const IMAGE_OPTS: Row =
    row(' ', "image-opts", "", "the name of the image is a list of options: driver=FMT,file.filename=PATH");
const OUTPUT: Row = row(' ', "output", "human|json", "style of the output");
const CACHE: Note = Note::NoEffect("the page cache is used");
const SOURCE_CACHE: Row =
    row('T', "source-cache", "CACHE", "cache mode of the images that are read").note(CACHE).imgconv("no effect");
const CACHE_READ: Row = row('T', "cache", "CACHE", "cache mode of the image").note(CACHE).imgconv("none");

const CHANGED_CACHE: Note = Note::NoEffect("the page cache is used, and the image is synced at the end");

pub static COMMANDS: &[Command] = &[
    Command {
        name: "amend",
        purpose: "change options of an image",
        operands: "FILENAME",
        rows: &[
            HELP,
            QUIET.imgconv("none"),
            PROGRESS.imgconv("none"),
            row('o', "options", "K=V,...", "options of the format").note(Note::Differs(
                "compat, lazy_refcounts, refcount_bits, data_file, data_file_raw and size of qcow2; key slots of qcow2 and luks",
            )).imgconv("none of the key slots, nor size"),
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS.imgconv("none"),
            row('t', "cache", "CACHE", "cache mode of the image").note(CHANGED_CACHE).imgconv("none"),
            row(' ', "force", "", "allow changes of key slots that lose data").imgconv("none"),
            OBJECT,
        ],
        run: amend::run,
        imgconv: "prints nothing",
    },
    Command {
        name: "bench",
        purpose: "measure the speed of an image",
        operands: "FILENAME",
        rows: &[],
        run: refused,
        imgconv: "refused: fio measures what a program sees",
    },
    Command {
        name: "bitmap",
        purpose: "change the bitmaps of an image",
        operands: "FILENAME BITMAP",
        rows: &[
            HELP,
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS.imgconv("none"),
            row(' ', "add", "", "add the bitmap"),
            row('g', "granularity", "SIZE", "bytes per bit of a new bitmap"),
            row(' ', "remove", "", "remove the bitmap"),
            row(' ', "clear", "", "clear all bits"),
            row(' ', "enable", "", "track writes"),
            row(' ', "disable", "", "track no more writes"),
            row(' ', "merge", "SOURCE", "add the bits of another bitmap"),
            row('b', "source-file", "FILE", "the image with the other bitmap"),
            row('F', "source-format", "FMT", "format of the other image").imgconv("none: it is detected"),
            OBJECT,
        ],
        run: bitmap::run,
        imgconv: "one change at a time",
    },
    Command {
        name: "check",
        purpose: "check the metadata of an image",
        operands: "FILENAME",
        rows: &[
            HELP,
            QUIET,
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS,
            CACHE_READ,
            SHARE,
            OUTPUT,
            row('r', "repair", "leaks|all", "repair the image")
                .note(Note::Differs("refcounts and flags of qcow2, shared clusters and leaked space of parallels, not what would have to be guessed; the log of vhdx"))
                .imgconv("also vdi, vmdk and vpc; --backup, --restore"),
            OBJECT,
        ],
        run: check::run,
        imgconv: "also checks vpc and dmg",
    },
    Command {
        name: "commit",
        purpose: "write the data of an overlay into its backing file",
        operands: "FILENAME",
        rows: &[
            HELP,
            QUIET.imgconv("none"),
            PROGRESS.imgconv("none"),
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS.imgconv("none"),
            row('t', "cache", "CACHE", "cache mode of the images").note(CHANGED_CACHE).imgconv("none"),
            row('b', "base", "BASE", "the image of the backing chain that is written to; implies -d"),
            row('d', "drop", "", "do not empty the overlay afterwards"),
            row('r', "rate-limit", "RATE", "limit of bytes per second")
                .note(Note::Refused("the rate cannot be limited"))
                .imgconv("none"),
            OBJECT,
        ],
        run: commit::run,
        imgconv: "prints nothing",
    },
    Command {
        name: "compare",
        purpose: "compare the contents of two images",
        operands: "FILENAME1 FILENAME2",
        rows: &[
            HELP,
            QUIET,
            PROGRESS.imgconv("none: a bar on standard error, if that is a terminal"),
            row('f', "a-format", "FMT", "format of FILENAME1"),
            row('F', "b-format", "FMT", "format of FILENAME2"),
            IMAGE_OPTS,
            row('s', "strict", "", "the sizes and what is allocated have to be equal, too")
                .note(Note::Differs("what map tells is compared; the end of a file makes no difference"))
                .imgconv("the sizes have to be equal"),
            CACHE_READ,
            SHARE,
            OBJECT,
        ],
        run: compare::run,
        imgconv: "",
    },
    Command {
        name: "convert",
        purpose: "convert an image to another format",
        operands: "SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
        rows: &[
            HELP,
            QUIET,
            PROGRESS,
            row('f', "source-format", "SRC_FMT", "format of the sources"),
            row(' ', "source-image-opts", "", "the sources are lists of options"),
            IMAGE_OPTS,
            row(
                'l',
                "source-snapshot",
                "SNAPSHOT",
                "read this snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME",
            )
            .note(Note::Differs("a snapshot has the size that it was taken with, after a resize too; qemu-img uses the size of the disk")),
            row('T', "source-cache", "CACHE", "cache mode of the sources [default: writeback]")
                .note(Note::Differs("where the file system cannot bypass the page cache, it is used, with a warning")),
            row('O', "target-format", "TGT_FMT", "format of the target [default: raw]")
                .imgconv("default: from the extension of the target"),
            row(' ', "target-image-opts", "", "the target is a list of options; needs -n"),
            row('o', "target-options", "K=V,...", "options of the target format; -o help lists them"),
            row('c', "compress", "", "compress the guest data"),
            row('t', "target-cache", "CACHE", "cache mode of the target [default: unsafe]")
                .note(Note::Differs("as -T; writethrough and directsync sync after each write"))
                .imgconv("default: writeback"),
            row('B', "backing", "FILE", "backing file of the target"),
            row('b', "backing-file", "FILE", "as -B"),
            row('F', "backing-format", "FMT", "format of the backing file"),
            row('n', "no-create", "", "write into an existing target"),
            row(' ', "target-is-zero", "", "the target reads as zeros; needs -n")
                .note(Note::NoEffect("zeros are written as holes where the target can have them"))
                .imgconv("no effect"),
            row('S', "sparse-size", "SIZE", "omit runs of zeros of at least SIZE [default: 4k]"),
            row(' ', "bitmaps", "", "copy the bitmaps of the source").imgconv("not with -l: a snapshot has no bitmaps"),
            row(' ', "skip-broken-bitmaps", "", "copy bitmaps, except broken ones"),
            SHARE,
            row('r', "rate", "RATE", "limit of bytes per second"),
            row('m', "parallel", "N", "number of threads")
                .note(Note::Differs("threads, not coroutines; the result is the same")),
            row('C', "copy-range-offloading", "", "copy within the file system where it can")
                .note(Note::NoEffect("data is read and written"))
                .imgconv("no effect"),
            row(' ', "salvage", "", "read what can be read of a damaged source")
                .note(Note::Differs("a warning for each unreadable range"))
                .imgconv("the same; exit code 3"),
            row('W', "oob-writes", "", "write out of order")
                .note(Note::NoEffect("all threads write, whatever the order"))
                .imgconv("no effect"),
            OBJECT,
        ],
        run: convert::run,
        imgconv: "the target is replaced atomically, or written in place with --in-place",
    },
    Command {
        name: "create",
        purpose: "create an empty image or an overlay",
        operands: "FILENAME [SIZE]",
        rows: &[
            HELP,
            QUIET,
            row('f', "format", "FMT", "format of the image [default: raw]").imgconv("default: from the extension"),
            row('o', "options", "K=V,...", "options of the format; -o help lists them")
                .imgconv("same; formats lists the options"),
            row('b', "backing", "FILE", "backing file"),
            row('F', "backing-format", "FMT", "format of the backing file").imgconv("default: detected"),
            row('u', "backing-unsafe", "", "do not open the backing file"),
            OBJECT,
        ],
        run: create::run,
        imgconv: "",
    },
    Command {
        name: "dd",
        purpose: "copy a part of an image",
        operands: "if=INPUT of=OUTPUT [bs=SIZE] [count=N] [skip=N]",
        rows: &[
            HELP,
            row('f', "format", "FMT", "format of INPUT"),
            IMAGE_OPTS,
            row('O', "output-format", "FMT", "format of OUTPUT [default: raw]"),
            SHARE,
            OBJECT,
        ],
        run: dd::run,
        imgconv: "none",
    },
    Command {
        name: "info",
        purpose: "show properties of an image",
        operands: "FILENAME",
        rows: &[
            HELP,
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS,
            row('b', "backing-chain", "", "show the backing files, too"),
            SHARE,
            OBJECT,
            row(' ', "limits", "", "show limits of block devices")
                .note(Note::NoEffect("files have none"))
                .imgconv("none"),
            OUTPUT,
        ],
        run: info::run,
        imgconv: "shows more: compression, packages, warnings, properties of every format",
    },
    Command {
        name: "map",
        purpose: "show which ranges of an image hold data",
        operands: "FILENAME",
        rows: &[
            HELP,
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS,
            row('s', "start-offset", "OFFSET", "start here").imgconv("none"),
            row('l', "max-length", "LENGTH", "show this many bytes").imgconv("none"),
            OUTPUT,
            SHARE,
            OBJECT,
        ],
        run: map::run,
        imgconv: "",
    },
    Command {
        name: "measure",
        purpose: "calculate the size of the file of a new image",
        operands: "[--size SIZE | FILENAME]",
        rows: &[
            HELP,
            row('O', "target-format", "FMT", "format of the new image [default: raw]"),
            row('o', "target-options", "K=V,...", "options of the new image"),
            row('s', "size", "SIZE", "disk size"),
            row('f', "format", "FMT", "format of FILENAME"),
            IMAGE_OPTS,
            row('l', "snapshot", "SNAPSHOT", "measure this snapshot"),
            OUTPUT,
            SHARE,
            OBJECT,
        ],
        run: measure::run,
        imgconv: "",
    },
    Command {
        name: "rebase",
        purpose: "change the backing file of an overlay",
        operands: "FILENAME",
        rows: &[
            HELP,
            QUIET.imgconv("none"),
            PROGRESS.imgconv("none"),
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS.imgconv("none"),
            row('t', "cache", "CACHE", "cache mode of the image").note(CHANGED_CACHE).imgconv("none"),
            SOURCE_CACHE.imgconv("none"),
            row('b', "backing", "FILE", "the new backing file, or \"\" for none"),
            row('B', "backing-file", "FILE", "as -b"),
            row('F', "backing-format", "FMT", "format of the new backing file").imgconv("detected without it"),
            row('u', "backing-unsafe", "", "change the name of the backing file only"),
            row('c', "compress", "", "compress what is written"),
            SHARE,
            OBJECT,
        ],
        run: rebase::run,
        imgconv: "prints nothing",
    },
    Command {
        name: "resize",
        purpose: "change the size of an image",
        operands: "FILENAME [+-]SIZE",
        rows: &[
            HELP,
            QUIET,
            row('f', "format", "FMT", "format of the image")
                .note(Note::Differs("also formats that qemu-img does not resize, such as vmdk")),
            IMAGE_OPTS.imgconv("none"),
            row(' ', "preallocation", "MODE", "allocate what is added: off, metadata, falloc or full"),
            row(' ', "shrink", "", "allow a smaller size"),
            OBJECT,
        ],
        run: resize::run,
        imgconv: "",
    },
    Command {
        name: "snapshot",
        purpose: "list and change the snapshots of an image",
        operands: "FILENAME",
        rows: &[
            HELP,
            QUIET.imgconv("none"),
            row('f', "format", "FMT", "format of the image"),
            IMAGE_OPTS.imgconv("none"),
            SHARE,
            OBJECT,
            row('l', "list", "", "list the snapshots (the default)").imgconv("one of -l, -c, -a and -d has to be given"),
            row('c', "create", "NAME", "create a snapshot"),
            row('a', "apply", "SNAPSHOT", "go back to a snapshot"),
            row('d', "delete", "SNAPSHOT", "delete a snapshot"),
        ],
        run: snapshot::run,
        imgconv: "",
    },
];

impl Command {
    /// The options.
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> {
        self.rows.iter()
    }

    /// The help of the command.
    pub fn help(&self) -> String {
        let mut text =
            format!("{}\n\nUsage: qemu-img {} [OPTIONS] {}\n\nOptions:\n", self.purpose, self.name, self.operands);
        for row in self.rows {
            // Writing to a string cannot fail.
            let other = if row.imgconv.is_empty() { String::new() } else { format!(" [as imgconv: {}]", row.imgconv) };
            let _ = writeln!(text, "  {}\n     {}{}{other}", row.name(), row.help, row.note.text());
        }
        if !self.imgconv.is_empty() {
            let _ = write!(text, "\nWithout the name qemu-img, imgconv {}: {}.\n", self.name, self.imgconv);
        }
        text
    }
}

impl Row {
    /// As in `-f, --format FMT`.
    fn name(&self) -> String {
        let short = self.short.map_or(String::new(), |short| format!("-{short}, "));
        let value = if self.value.is_empty() { String::new() } else { format!(" {}", self.value) };
        format!("{short}--{}{value}", self.long)
    }
}

impl Note {
    fn text(self) -> String {
        match self {
            Note::Same => String::new(),
            Note::NoEffect(why) => format!(" (no effect: {why})"),
            Note::Differs(how) => format!(" (differs: {how})"),
            Note::Refused(why) => format!(" (refused: {why})"),
        }
    }
}

/// The help of the program.
pub fn overview() -> String {
    let mut text = format!(
        "{}The command line of qemu-img, as imgconv takes it.\n\nUsage: qemu-img COMMAND [OPTIONS] ...\n\nCommands:\n",
        super::version()
    );
    for command in COMMANDS {
        let _ = writeln!(text, "  {} - {}", command.name, command.purpose);
    }
    let formats: Vec<_> = diskimage::Format::all().map(|format| format.name()).collect();
    let _ =
        write!(text, "\nFormats: {}\n\nqemu-img COMMAND --help shows the options of a command.\n", formats.join(" "));
    text
}

/// The differences as a table in Markdown, for the README.
#[cfg(test)]
fn differences() -> String {
    let mut text = "| command | as `qemu-img` | as `imgconv` |\n|---|---|---|\n".to_owned();
    for command in COMMANDS {
        let is_refused = std::ptr::fn_addr_eq(command.run, refused as fn(&Parsed) -> Outcome);
        if is_refused || !command.imgconv.is_empty() {
            let here = if is_refused { "refused" } else { "same" };
            let _ = writeln!(text, "| `{}` | {here} | {} |", command.name, or_same(command.imgconv));
        }
        // A command without a counterpart has no options there.
        let is_alone = command.imgconv == "none";
        for row in command.rows().filter(|row| row.note != Note::Same || !is_alone && !row.imgconv.is_empty()) {
            let here = match row.note {
                Note::Same => "same".to_owned(),
                Note::NoEffect(why) => format!("no effect: {why}"),
                Note::Differs(how) => format!("differs: {how}"),
                Note::Refused(why) => format!("refused: {why}"),
            };
            let option = row.short.map_or(format!("--{}", row.long), |short| format!("-{short}"));
            let _ = writeln!(
                text,
                "| `{} {option}` | {here} | {} |",
                command.name,
                if is_alone { "none" } else { or_same(row.imgconv) }
            );
        }
    }
    text
}

#[cfg(test)]
fn or_same(text: &str) -> &str {
    if text.is_empty() { "same" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_one_meaning() {
        for command in COMMANDS {
            for (index, row) in command.rows().enumerate() {
                let others = || command.rows().skip(index + 1);
                assert!(others().all(|other| other.long != row.long), "{} --{}", command.name, row.long);
                assert!(
                    others().all(|other| row.short.is_none() || other.short != row.short),
                    "{} {:?}",
                    command.name,
                    row.short
                );
            }
        }
    }

    #[test]
    fn the_readme_has_the_table() {
        let readme = include_str!("../../../../README.md");
        let table = differences();
        assert!(readme.contains(&table), "the table of the README should be:\n{table}");
    }
}
