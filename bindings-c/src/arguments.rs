//! Arguments of callers: the types of parameters, and the checks that they go through.
//!
//! Values of these types come from callers of the C interface alone: no safe code makes one that is not NULL. Their methods
//! rely on what the header asks of a caller whose argument is neither NULL nor of a wrong size: that texts end with a NUL,
//! that arrays have as many elements as was said, that structs and outputs are where they are said to be, for as long as the call.

use std::{
    ffi::{CStr, c_char},
    fmt,
};

use crate::{
    failure::{Failure, Status},
    handle::null,
};

/// `const char *`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

/// `const T *`, of as many as another argument says.
#[repr(transparent)]
pub(crate) struct Array<T>(*const T);

/// `const T *`, one versioned struct.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

/// `T *`, to be written on success.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

/// `T *`, a versioned struct to be filled on success.
#[repr(transparent)]
pub(crate) struct Fill<T>(*mut T);

/// An output that can be written.
pub(crate) struct Place<T>(*mut T);

/// A struct of the header that begins with its size and version.
///
/// # Safety
///
/// The type is `repr(C)`, begins with two `u32`, and every pattern of bits is a value of it.
pub(crate) unsafe trait Versioned: Copy {
    /// Name in the header.
    const NAME: &'static str;
}

/// Texts that callers give are for people and names: longer ones are mistakes, as an end that is missing.
const MAX_TEXT: usize = 64 << 20;

macro_rules! pointers {
    ($($name:ident),*) => {$(
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:p}", self.0)
            }
        }
    )*};
}

pointers!(Array, In, Out, Fill);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}", self.0)
    }
}

impl Text {
    /// The text, for as long as the call.
    pub(crate) fn read<'a>(self, field: &str) -> Result<&'a str, Failure> {
        self.optional(field)?.ok_or_else(|| null(field))
    }

    /// The text, or `None` for NULL.
    pub(crate) fn optional<'a>(self, field: &str) -> Result<Option<&'a str>, Failure> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's text ends with a NUL and stays for the call, which the result does not outlive: functions
        // copy what they keep.
        let text = unsafe { CStr::from_ptr(self.0) };
        if text.count_bytes() > MAX_TEXT {
            let (has, most) = (text.count_bytes(), MAX_TEXT);
            let why = format!("has {has} bytes; expected {most} at most");
            return Err(Failure::new(Status::Value, why).at(field));
        }
        let text = text.to_str().map_err(|error| {
            let why = format!("is not UTF-8 from byte {}", error.valid_up_to());
            Failure::new(Status::Utf8, why).at(field)
        })?;
        Ok(Some(text))
    }
}

fn aligned<T>(pointer: *const T, field: &str) -> Result<(), Failure> {
    if pointer.is_aligned() {
        return Ok(());
    }
    let align = align_of::<T>();
    let why = format!("is at {pointer:p}, which is no multiple of {align}");
    Err(Failure::new(Status::Value, why).at(field))
}

impl<T: Copy> Array<T> {
    /// Its elements, for as long as the call.
    pub(crate) fn read<'a>(self, count: u32, field: &str) -> Result<&'a [T], Failure> {
        if count == 0 {
            return Ok(&[]);
        }
        if self.0.is_null() {
            return Err(null(field).hint(format!("{count} elements were announced")));
        }
        aligned(self.0, field)?;
        // SAFETY: it is aligned, and the caller has put `count` elements there, which stay for the call.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count as usize) })
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// Checks the first two words of a struct.
fn check_version<T: Versioned>(pointer: *const T, field: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(null(field));
    }
    aligned(pointer, field)?;
    // SAFETY: every versioned struct begins with these two words, whatever its size, and it is aligned for them.
    let [size, version] = unsafe { pointer.cast::<[u32; 2]>().read() };
    let expected = size_of::<T>() as u32;
    let name = T::NAME;
    let hint = format!("begin with {name}_init() of the header that belongs to this library");
    if size != expected {
        let why = format!("is {size} bytes; this library's {name} has {expected}");
        let failure = Failure::new(Status::Struct, why).values(expected, size);
        return Err(failure.at(format!("{field}.size")).hint(hint));
    }
    if version != 1 {
        let why = format!("is {version}; this library knows version 1 of {name}");
        let failure = Failure::new(Status::Struct, why).values(1, version);
        return Err(failure.at(format!("{field}.version")).hint(hint));
    }
    Ok(())
}

impl<T: Versioned> In<T> {
    /// A copy of the struct.
    pub(crate) fn read(self, field: &str) -> Result<T, Failure> {
        check_version(self.0, field)?;
        // SAFETY: the struct says that it is as large as this type, and is aligned; every pattern of bits is one of its values.
        Ok(unsafe { self.0.read() })
    }
}

impl<T: Versioned> Array<T> {
    /// Copies of structs that stand side by side.
    pub(crate) fn read_structs(self, count: u32, field: &str) -> Result<Vec<T>, Failure> {
        // The first says how large they are; only then is the second where it is looked for.
        let at =
            |index: u32| In(self.0.wrapping_add(index as usize)).read(&format!("{field}[{index}]"));
        if count > 0 && self.0.is_null() {
            return Err(null(field));
        }
        (0..count).map(at).collect()
    }
}

impl<T> Out<T> {
    /// Finds that it can be written, before anything is done.
    pub(crate) fn place(self, field: &str) -> Result<Place<T>, Failure> {
        self.optional(field)?.ok_or_else(|| null(field))
    }

    /// As [`place`](Self::place), and `None` for NULL.
    pub(crate) fn optional(self, field: &str) -> Result<Option<Place<T>>, Failure> {
        if self.0.is_null() {
            return Ok(None);
        }
        aligned(self.0, field)?;
        Ok(Some(Place(self.0)))
    }
}

impl Out<u8> {
    /// Room for a digest.
    pub(crate) fn digest(self, field: &str) -> Result<Place<[u8; 32]>, Failure> {
        Out(self.0.cast()).place(field)
    }
}

impl<T: Versioned> Fill<T> {
    /// Finds that it can be filled, before anything is done.
    pub(crate) fn place(self, field: &str) -> Result<Place<T>, Failure> {
        check_version(self.0, field)?;
        Ok(Place(self.0))
    }
}

impl<T> Place<T> {
    /// Writes it.
    pub(crate) fn write(self, value: T) {
        // SAFETY: it is not NULL and aligned, and the caller has room for a value there; what was there is not dropped.
        unsafe { self.0.write(value) }
    }
}
