//! A build without TLS.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::path::Path;

use crate::error::{Error, Result};

/// The settings of a client, which cannot be made.
#[derive(Clone, Debug)]
pub struct Client(Infallible);

/// The settings of a server, which cannot be made.
#[derive(Clone, Debug)]
pub struct Server(Infallible);

/// A stream with TLS, which cannot be made.
#[derive(Debug)]
pub struct Secured<S>(Infallible, PhantomData<S>);

fn unsupported() -> Error {
    Error::unsupported("NBD", super::missing().unwrap_or("TLS; build with the feature tls"))
}

impl Client {
    pub fn new(_certificates: Option<&Path>) -> Result<Client> {
        Err(unsupported())
    }

    pub fn connect<S>(&self, _stream: S, _host: &str) -> io::Result<Secured<S>> {
        match self.0 {}
    }
}

impl Server {
    pub fn new(_certificates: &Path) -> Result<Server> {
        Err(unsupported())
    }

    pub fn accept<S>(&self, _stream: S) -> io::Result<Secured<S>> {
        match self.0 {}
    }
}

impl<S> Secured<S> {
    pub fn stream(&mut self) -> &mut S {
        match self.0 {}
    }
}

impl<S> Read for Secured<S> {
    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}

impl<S> Write for Secured<S> {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}
