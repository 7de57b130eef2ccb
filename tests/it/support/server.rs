//! A small HTTP server, whose answers the test makes.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;

/// A request: its path, and its headers with names in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

/// An answer. `Content-Length` is added unless there is one, or the body is chunked.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// After how many bytes of the body the connection is closed.
    pub cut: Option<usize>,
    /// Whether the body is sent in pieces, with pauses.
    pub is_slow: bool,
}

/// Answers until the process ends.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` gets the number of the request, from 0 on.
    pub fn start(answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let log = requests.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                thread::spawn(move || serve(&connection, &log, &*answer));
            }
        });
        Server { address, requests }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The URL with a user name and a password.
    pub fn url_as(&self, user: &str, path: &str) -> String {
        format!("http://{user}@{}{path}", self.address)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The range that it asks for.
    pub fn range(&self) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
    }

    fn read(from: &mut impl BufRead) -> Option<Request> {
        let mut lines = from.lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let headers = lines.take_while(|line| !line.is_empty());
        let headers = headers.filter_map(|line| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        });
        Some(Request { path, headers: headers.collect() })
    }
}

impl Answer {
    pub fn status(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    /// What a server with ranges answers for this file.
    pub fn part(file: &[u8], request: &Request) -> Answer {
        let Some(range) = request.range() else { return Answer::whole(file) };
        let range = range.start..range.end.min(file.len());
        if range.is_empty() {
            return Answer::status(416).with("Content-Range", format!("bytes */{}", file.len()));
        }
        let (first, last) = (range.start, range.end - 1);
        let answer = Answer { status: 206, body: file[range].to_vec(), ..Answer::default() };
        answer.with("Content-Range", format!("bytes {first}-{last}/{}", file.len()))
    }

    pub fn whole(file: &[u8]) -> Answer {
        Answer { status: 200, body: file.to_vec(), ..Answer::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }

    fn write(&self, mut to: &TcpStream) -> io::Result<()> {
        let has = |wanted: &str| self.headers.iter().any(|(name, _)| *name == wanted);
        let mut head = format!("HTTP/1.1 {} Text\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !has("Content-Length") && !has("Transfer-Encoding") && !has("Connection") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        to.write_all(format!("{head}\r\n").as_bytes())?;
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        let size = if self.is_slow { 50_000 } else { body.len().max(1) };
        for piece in body.chunks(size) {
            if has("Transfer-Encoding") {
                to.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            }
            to.write_all(piece)?;
            if has("Transfer-Encoding") {
                to.write_all(b"\r\n")?;
            }
            if self.is_slow {
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        if has("Transfer-Encoding") && self.cut.is_none() {
            to.write_all(b"0\r\n\r\n")?;
        }
        Ok(())
    }
}

/// Answers the requests of one connection.
fn serve(connection: &TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(usize, &Request) -> Answer) {
    let mut reader = BufReader::new(connection);
    while let Some(request) = Request::read(&mut reader) {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let answer = answer(number, &request);
        let is_last = answer.cut.is_some() || answer.headers.iter().any(|(name, _)| *name == "Connection");
        if answer.write(connection).is_err() || is_last {
            return;
        }
    }
}
