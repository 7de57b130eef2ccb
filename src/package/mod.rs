//! Packages: files and directories that hold the images of disks.

mod tar;
