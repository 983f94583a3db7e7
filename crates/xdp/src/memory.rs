//! Arrays of the kernel that are mapped into the memory of this process.

use aya::Pod;
use aya::maps::{MapData, MapError};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

/// An array in memory that the program in the kernel reads at the same time.
#[derive(Debug)]
pub struct SharedArray<T> {
    map: MapData,
    memory: NonNull<T>,
    len: usize,
    kind: PhantomData<T>,
}

// SAFETY: the memory belongs to the array alone in this process and stays where it is.
unsafe impl<T: Pod + Send> Send for SharedArray<T> {}

impl<T: Pod> SharedArray<T> {
    /// Maps an array (with `BPF_F_MMAPABLE`) into memory.
    pub(crate) fn new(map: MapData) -> Result<Self, MapError> {
        let info = map.info()?;
        assert_eq!(info.value_size() as usize, size_of::<T>(), "the contract has the size of an entry");
        assert_eq!(size_of::<T>() % 8, 0, "the kernel puts entries at multiples of 8");
        let len = info.max_entries() as usize;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            mmap(std::ptr::null_mut(), Self::bytes(len), protection, MapFlags::SHARED, map.fd().as_fd(), 0)
        };
        let memory = NonNull::new(memory.map_err(std::io::Error::from)?.cast()).expect("not address 0");
        Ok(Self { map, memory, len, kind: PhantomData })
    }

    fn bytes(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(rustix::param::page_size())
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the array has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of an entry. Fields that the program reads must be written by volatile or atomic
    /// stores.
    ///
    /// # Panics
    /// There is no such entry.
    #[must_use]
    pub fn entry(&mut self, index: usize) -> NonNull<T> {
        assert!(index < self.len, "entry {index} of {}", self.len);
        // SAFETY: the entry is in the mapped memory.
        unsafe { self.memory.add(index) }
    }

    /// Reads an entry.
    ///
    /// # Panics
    /// There is no such entry.
    #[must_use]
    pub fn read(&self, index: usize) -> T {
        assert!(index < self.len, "entry {index} of {}", self.len);
        // SAFETY: the entry is in the mapped memory, and every pattern of bits is a value.
        unsafe { self.memory.add(index).read_volatile() }
    }
}

impl<T> AsFd for SharedArray<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        let bytes = (self.len * size_of::<T>()).next_multiple_of(rustix::param::page_size());
        // SAFETY: the mapping was made with this length, and no reference into it is left.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), bytes) };
    }
}
