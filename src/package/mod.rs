//! Packages: files and directories that hold the images of disks.

mod manifest;
mod ovf;
mod tar;
