//! `imgconv serve`

use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::RangedU64ValueParser;
use diskimage::nbd::{self, Server};
use diskimage::{Disk, Error, OpenOptions};
use serde_json::json;

use crate::args::Input;
use crate::failure::{Failure, Outcome};
use crate::location::{self, Location};
use crate::output::{self, Style};
use crate::sandbox::Needs;
use crate::signals::Interrupt;

/// Export an image to NBD clients, read-only or for writing
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Listen on a Unix socket, which must not exist and is removed at the
    /// end
    #[arg(long, value_name = "PATH", conflicts_with_all = ["port", "bind"], verbatim_doc_comment)]
    socket: Option<PathBuf>,

    /// Listen on a TCP port; 0 for any free one [default: 10809]
    #[arg(long, value_name = "N")]
    port: Option<u16>,

    /// Listen on an address of this machine [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    bind: Option<IpAddr>,

    /// Name of the export, in addition to the empty name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    export_name: String,

    /// Require TLS, with server-cert.pem and server-key.pem in DIR; if it has
    /// ca-cert.pem, clients need a certificate which that one has signed
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    tls_certificates: Option<PathBuf>,

    /// Let clients write to the disk; the image is locked meanwhile
    #[arg(long, conflicts_with = "snapshot")]
    rw: bool,

    /// Export an internal snapshot: its ID or name
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// End when the last client has disconnected
    #[arg(long)]
    once: bool,

    /// Largest number of connections, 1 to 1000; further clients wait
    /// [default: 16]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000), verbatim_doc_comment)]
    connections: Option<usize>,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
The guest data of FILE is exported, whatever its format is, with its backing files as far
as --references allows. Clients can ask which parts are holes. The URI of the export is
printed when clients can connect.

Without --tls-certificates there is no authentication and no encryption: every program
that can connect can read the disk, and with --rw write it.

SIGINT, SIGTERM and SIGHUP end the server; the exit code is 0 then. What clients wrote is
durable when they flush it, and at the end. With --rw, backing files are not changed.

Examples:
  imgconv serve --socket disk.sock disk.qcow2
  nbdcopy 'nbd+unix:///?socket=disk.sock' copy.raw
  imgconv serve --references beside --port 0 overlay.qcow2
  imgconv serve --rw --socket disk.sock disk.qcow2
  imgconv serve -l before-upgrade --once --export-name old disk.qcow2";

impl Args {
    /// What serving the disk needs.
    pub fn needs(&self) -> Needs {
        let mut needs = self.input.needs();
        needs.network();
        if let Some(socket) = &self.socket {
            needs.replace(socket);
        }
        match (self.rw, self.input.allows_any()) {
            (true, true) => needs.change_anything(),
            // With its data file.
            (true, false) => needs.replace(&self.input.file),
            (false, _) => {}
        }
        needs
    }

    pub fn run(&self) -> Outcome {
        let interrupt = Interrupt::register()?;
        let (options, file) = self.input.open()?;
        let options = match &self.snapshot {
            Some(snapshot) => options.snapshot(snapshot),
            None => options,
        };
        let options = options.cancel(interrupt.flag());
        let disk = match self.rw {
            true => Some(self.open_disk(&options, &file).map_err(|error| interrupt.failure(error))?),
            false => None,
        };
        let server = match &disk {
            Some(disk) => Server::writable(disk.clone()),
            None => {
                let image = Location::find(file)?.open(&options);
                Server::new(image.map_err(|error| interrupt.failure(error))?)?
            }
        };
        let mut server = server
            .export_name(&self.export_name)?
            .once(self.once)
            .cancel(interrupt.flag())
            .on_error(|error| output::note(&error.to_string()));
        if let Some(connections) = self.connections {
            server = server.connections(connections);
        }
        if let Some(directory) = &self.tls_certificates {
            server = server.tls(directory)?;
        }
        match &self.socket {
            Some(path) => self.serve_unix(&server, path)?,
            None => self.serve_tcp(&server)?,
        }
        drop(server);
        if let Some(disk) = disk.and_then(Arc::into_inner) {
            disk.close()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn open_disk(&self, options: &OpenOptions, file: &Path) -> diskimage::Result<Arc<Disk>> {
        if !location::is_file(file) {
            return Err(Error::Usage("--rw requires a file: an export or a URL cannot be served for writing".into()));
        }
        options.open_disk(file).map(Arc::new)
    }

    fn serve_tcp(&self, server: &Server) -> Result<(), Failure> {
        let address = (self.bind.unwrap_or([127, 0, 0, 1].into()), self.port.unwrap_or(nbd::PORT));
        let failed = |error: io::Error| {
            let (address, port) = address;
            Failure::from(Error::io(format!("listening on {address} port {port}"), None)(error))
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        self.print(&nbd::tcp_uri(&local.ip().to_string(), local.port(), &self.export_name))?;
        Ok(server.serve_tcp(listener)?)
    }

    #[cfg(unix)]
    fn serve_unix(&self, server: &Server, path: &Path) -> Result<(), Failure> {
        use std::os::unix::net::UnixListener;

        let listener = UnixListener::bind(path).map_err(Error::io("listening", None)).map_err(|e| e.in_file(path))?;
        let _removes = RemovesSocket(path);
        let absolute = std::path::absolute(path).map_err(Error::io("finding the directory", None))?;
        self.print(&nbd::unix_uri(absolute, &self.export_name))?;
        Ok(server.serve_unix(listener)?)
    }

    #[cfg(not(unix))]
    fn serve_unix(&self, _: &Server, _: &Path) -> Result<(), Failure> {
        Err(Failure::usage("--socket is not supported on this system"))
    }

    fn print(&self, uri: &str) -> diskimage::Result<()> {
        let uri = match self.tls_certificates {
            Some(_) => nbd::tls_uri(uri, None, None)?,
            None => uri.to_owned(),
        };
        match self.input.output.style {
            Style::Json => output::print_json(&json!({ "uri": uri })),
            Style::Human => output::print(&format!("{uri}\n")),
        }
    }
}

#[cfg(unix)]
struct RemovesSocket<'a>(&'a Path);

#[cfg(unix)]
impl Drop for RemovesSocket<'_> {
    fn drop(&mut self) {
        // Another program may have removed it.
        let _ = std::fs::remove_file(self.0);
    }
}
