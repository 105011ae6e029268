//! DLPack: tensors of frameworks, as the structs of `dlpack.h` 0.x (`DLManagedTensor`) and 1.x (`DLManagedTensorVersioned`).

use std::{
    ffi::{CStr, c_void},
    ptr::NonNull,
};

use moai_fabric::memory::{MemoryKind, Region};

use crate::{
    abi,
    arguments::{Fill, Out},
    failure::{Failure, Status, call_back},
    handle::{Handle, null},
    memory::{Memory, device},
    structs::{DLPACK_DIMS, Dlpack},
};

#[derive(Clone, Copy)]
#[repr(C)]
struct DlDevice {
    device_type: i32,
    device_id: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

type Deleter<T> = Option<unsafe extern "C" fn(*mut T)>;

#[derive(Clone, Copy)]
#[repr(C)]
struct Managed {
    tensor: DlTensor,
    manager_ctx: *mut c_void,
    deleter: Deleter<Self>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    manager_ctx: *mut c_void,
    deleter: Deleter<Self>,
    flags: u64,
    tensor: DlTensor,
}

/// The layout of the structs is that of all 1.x versions.
const MAJOR: u32 = 1;
const READ_ONLY: u64 = 1;

/// DLPack's numbers of devices.
const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;
const ROCM: i32 = 10;
const ROCM_HOST: i32 = 11;
const CUDA_MANAGED: i32 = 13;

/// Type codes and bits, and what a description calls that element.
const ELEMENTS: &[(u8, u8, &CStr)] = &[
    (2, 16, c"f16"),
    (2, 32, c"f32"),
    (4, 16, c"bf16"),
    (10, 8, c"e4m3fn"),
    (11, 8, c"e4m3fnuz"),
    (12, 8, c"e5m2"),
    (13, 8, c"e5m2fnuz"),
];

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> Failure {
    Failure::new(Status::Tensor, problem).at(field)
}

/// What a tensor says of itself, and whom to call when it is done with.
fn read(tensor: *mut c_void, versioned: u32) -> Result<(DlTensor, bool, Option<Lent>), Failure> {
    if tensor.is_null() {
        return Err(null("tensor"));
    }
    if !tensor.cast::<u64>().is_aligned() {
        return Err(
            Failure::new(Status::Value, "is not aligned as a pointer to a struct").at("tensor"),
        );
    }
    match versioned {
        0 => {
            // SAFETY: the caller says that it is a `DLManagedTensor`; it is aligned.
            let managed = unsafe { tensor.cast::<Managed>().read() };
            let lent = managed
                .deleter
                .map(|_| Lent::Managed(tensor.expose_provenance()));
            Ok((managed.tensor, false, lent))
        }
        1 => {
            // SAFETY: every version of the struct begins with its version.
            let [major, minor] = unsafe { tensor.cast::<[u32; 2]>().read() };
            if major != MAJOR {
                let why = format!("is {major}.{minor}; this library reads {MAJOR}.x");
                return Err(wrong("version", why).values(MAJOR, major));
            }
            // SAFETY: the caller says that it is a `DLManagedTensorVersioned`, and it is of a version that is known.
            let managed = unsafe { tensor.cast::<Versioned>().read() };
            let lent = { managed.deleter }.map(|_| Lent::Versioned(tensor.expose_provenance()));
            Ok((managed.tensor, managed.flags & READ_ONLY != 0, lent))
        }
        other => {
            let why = format!(
                "is {other}; expected 0 for DLManagedTensor, or 1 for DLManagedTensorVersioned"
            );
            Err(Failure::new(Status::Value, why).at("versioned"))
        }
    }
}

/// A tensor that was taken, by the address of its struct.
enum Lent {
    Managed(usize),
    Versioned(usize),
}

impl Drop for Lent {
    fn drop(&mut self) {
        match *self {
            Self::Managed(at) => {
                let at = std::ptr::with_exposed_provenance_mut::<Managed>(at);
                // SAFETY: the tensor was taken, and stays until its deleter is called, which is here and once.
                let managed = unsafe { at.read() };
                if let Some(delete) = managed.deleter {
                    // SAFETY: the same.
                    call_back(|| unsafe { delete(at) });
                }
            }
            Self::Versioned(at) => {
                let at = std::ptr::with_exposed_provenance_mut::<Versioned>(at);
                // SAFETY: as above.
                let managed = unsafe { at.read() };
                if let Some(delete) = managed.deleter {
                    // SAFETY: as above.
                    call_back(|| unsafe { delete(at) });
                }
            }
        }
    }
}

/// Sizes or strides of a tensor.
fn list(from: *const i64, dims: usize, field: &str) -> Result<[i64; DLPACK_DIMS], Failure> {
    let mut list = [0; DLPACK_DIMS];
    if !from.is_aligned() {
        return Err(wrong(field, "is not aligned"));
    }
    for (dim, slot) in list.iter_mut().enumerate().take(dims) {
        // SAFETY: the tensor has as many sizes, and strides if any, as it says that it has dimensions.
        *slot = unsafe { from.wrapping_add(dim).read() };
    }
    Ok(list)
}

/// Checks a tensor, and describes it.
fn describe(tensor: &DlTensor, read_only: bool) -> Result<Dlpack, Failure> {
    let dims = usize::try_from(tensor.ndim)
        .ok()
        .filter(|&dims| dims <= DLPACK_DIMS);
    let dims = dims.ok_or_else(|| {
        let why = format!("is {}; expected 0 to {DLPACK_DIMS}", tensor.ndim);
        wrong("ndim", why).values(DLPACK_DIMS, tensor.ndim)
    })?;
    let DlDataType { code, bits, lanes } = tensor.dtype;
    let wide = u32::from(bits) * u32::from(lanes);
    if wide == 0 || wide % 8 != 0 {
        let why = format!("is {bits} bits × {lanes} lanes; expected whole bytes");
        return Err(wrong("dtype", why));
    }
    let element_bytes = wide / 8;
    if dims > 0 && tensor.shape.is_null() {
        return Err(wrong("shape", "is NULL"));
    }
    let shape = list(tensor.shape, dims, "shape")?;
    let mut elements = 1_i64;
    for (dim, &size) in shape[..dims].iter().enumerate() {
        if size < 1 {
            return Err(wrong(
                format!("shape[{dim}]"),
                format!("is {size}; expected 1 or more"),
            ));
        }
        let more = elements.checked_mul(size);
        elements =
            more.ok_or_else(|| wrong(format!("shape[{dim}]"), "makes more elements than can be"))?;
    }
    let mut row_major = [0; DLPACK_DIMS];
    let mut step = 1;
    for dim in (0..dims).rev() {
        row_major[dim] = step;
        step *= shape[dim];
    }
    let strides = match tensor.strides.is_null() {
        true => row_major,
        false => list(tensor.strides, dims, "strides")?,
    };
    let mut last = 0_i64;
    for (dim, (&size, &stride)) in shape.iter().zip(&strides).enumerate().take(dims) {
        if stride < 0 {
            return Err(wrong(
                format!("strides[{dim}]"),
                format!("is {stride}; expected 0 or more"),
            ));
        }
        let reach = (size - 1)
            .checked_mul(stride)
            .and_then(|reach| last.checked_add(reach));
        last =
            reach.ok_or_else(|| wrong(format!("strides[{dim}]"), "reaches further than can be"))?;
    }
    let bytes = { last.checked_add(1) }
        .and_then(|elements| elements.checked_mul(i64::from(element_bytes)))
        .ok_or_else(|| wrong("shape", "has more bytes than can be"))?;
    // Dimensions of one index have strides that mean nothing.
    let matters = |dim: &usize| shape[*dim] > 1;
    let is_contiguous = (0..dims)
        .filter(matters)
        .all(|dim| strides[dim] == row_major[dim]);
    let element = ELEMENTS
        .iter()
        .find(|known| (known.0, known.1) == (code, bits) && lanes == 1);
    let data = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
    if data.is_null() {
        return Err(wrong("data", "is NULL"));
    }
    Ok(Dlpack {
        size: size_of::<Dlpack>() as u32,
        version: 1,
        data,
        bytes: bytes as u64,
        device_type: tensor.device.device_type,
        device_id: tensor.device.device_id,
        element_bytes,
        dims: dims as u32,
        shape,
        strides,
        is_contiguous: is_contiguous.into(),
        is_dense: gap(&shape[..dims], &strides[..dims]).is_none().into(),
        is_read_only: read_only.into(),
        reserved: 0,
        element: element.map_or(c"", |known| known.2).as_ptr(),
    })
}

/// The first dimension, in the order of strides, that leaves a gap or overlaps, and the stride that it should have.
fn gap(shape: &[i64], strides: &[i64]) -> Option<(usize, i64)> {
    let mut order: Vec<usize> = (0..shape.len()).filter(|&dim| shape[dim] > 1).collect();
    order.sort_by_key(|&dim| strides[dim]);
    let mut step = 1;
    for dim in order {
        if strides[dim] != step {
            return Some((dim, step));
        }
        step *= shape[dim];
    }
    None
}

abi! {
    fn moai_dlpack_read(tensor: *const c_void, versioned: u32, out: Fill<Dlpack>) {
        let place = out.place("out")?;
        let (tensor, read_only, lent) = read(tensor.cast_mut(), versioned)?;
        // It is looked at, and stays the caller's.
        std::mem::forget(lent);
        place.write(describe(&tensor, read_only)?);
        Ok(())
    }

    fn moai_region_from_dlpack(tensor: *mut c_void, versioned: u32, region: Out<Handle<Memory>>) {
        let place = region.place("region")?;
        let (tensor, read_only, lent) = read(tensor, versioned)?;
        // Until all is checked it stays the caller's.
        let lent = std::mem::ManuallyDrop::new(lent);
        let said = describe(&tensor, read_only)?;
        let kind = match said.device_type {
            CPU => MemoryKind::Host,
            CUDA_HOST | ROCM_HOST => MemoryKind::Pinned,
            CUDA | CUDA_MANAGED => return Err(device("CUDA").at("device.device_type").values(CPU, CUDA)),
            ROCM => return Err(device("ROCm").at("device.device_type").values(CPU, ROCM)),
            other => return Err(device(&format!("DLPack type {other}")).at("device.device_type").values(CPU, other)),
        };
        let dims = said.dims as usize;
        if let Some((dim, stride)) = gap(&said.shape[..dims], &said.strides[..dims]) {
            let has = said.strides[dim];
            let why = format!("is {has}, which leaves gaps or overlaps; a dense tensor has {stride} there");
            let failure = wrong(format!("strides[{dim}]"), why).values(stride, has);
            return Err(failure.hint("register the storage that the view is of, and describe it by its strides"));
        }
        if read_only {
            return Err(wrong("flags", "say that the tensor is read-only; a region is written to"));
        }
        let start = NonNull::new(said.data.cast::<u8>()).ok_or_else(|| wrong("data", "is NULL"))?;
        let owner = std::mem::ManuallyDrop::into_inner(lent);
        // SAFETY: the tensor is dense, so all of these bytes are its own; it is on the host and writable. It stays until its deleter
        // is called, by the owner's end. Who else writes is asked of the caller by the header.
        let made = unsafe { Region::from_raw(start, said.bytes as usize, kind, Box::new(owner)) };
        place.write(Handle::new(Memory::new(made))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_dense_in_any_order_of_its_dimensions() {
        assert_eq!(gap(&[4, 3, 2], &[6, 2, 1]), None);
        assert_eq!(gap(&[4, 3, 2], &[1, 8, 4]), None);
        assert_eq!(gap(&[4, 1, 2], &[2, 99, 1]), None);
        assert_eq!(gap(&[], &[]), None);
        assert_eq!(gap(&[4, 3], &[4, 1]), Some((0, 3)));
        assert_eq!(gap(&[4, 3], &[0, 1]), Some((0, 1)));
    }
}
