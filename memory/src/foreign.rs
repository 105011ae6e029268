//! Memory that another image of this crate has: a plug-in, or the program that has loaded one.

use std::any::Any;
use std::os::fd::BorrowedFd;

use crate::Domain;

/// What keeps such memory alive, and what it knows of it. It is dropped with the last region and hold.
pub trait Foreign: Send + Sync {
    /// The device whose streams reach the bytes; `None` where the processor does.
    fn domain(&self) -> Option<&dyn Domain>;

    /// The file that another process can import, and where the memory begins in it.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)>;

    /// Whether it may be written.
    fn is_writable(&self) -> bool;

    /// Itself, for those who have made it and look for their own.
    fn as_any(&self) -> &dyn Any;
}
