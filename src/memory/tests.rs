use super::*;
use proptest::prelude::*;

const MEMORY: Memory = Memory(System);

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, 8).unwrap()
}

fn allocate(len: usize) -> *mut u8 {
    // SAFETY: no test asks for zero bytes.
    unsafe { MEMORY.alloc(layout(len)) }
}

fn free(block: *mut u8, len: usize) {
    // SAFETY: tests free what they allocated, once, with its length.
    unsafe { MEMORY.dealloc(block, layout(len)) }
}

fn in_pool(block: *mut u8) -> bool {
    Number::of(block).is_some()
}

/// Makes the thread's pool large enough for `len` bytes: it grows after it was too small.
fn warm(len: usize) {
    lent(|| free(allocate(len), len));
    settle();
}

#[test]
fn a_pool_serves_what_the_system_served_the_first_time() {
    let before = allocations();
    warm(100_000);
    assert_eq!(allocations(), before + 1);
    let first = lent(|| {
        let blocks = [allocate(50_000), allocate(50_000)];
        blocks.iter().for_each(|block| free(*block, 50_000));
        blocks
    });
    let again = lent(|| {
        let block = allocate(50_000);
        free(block, 50_000);
        block
    });
    assert_eq!(again, first[0], "the pool begins anew");
    assert!(in_pool(first[1]) && first[1] != first[0]);
    assert_eq!(allocations(), before + 1);
    let outside = allocate(10);
    assert!(!in_pool(outside));
    free(outside, 10);
    assert_eq!(allocations(), before + 2);
}

#[test]
fn a_block_that_outlives_its_loan_is_not_given_out_again() {
    warm(1000);
    let kept = lent(|| allocate(100));
    lent(|| {
        let other = allocate(100);
        assert!(in_pool(other) && other != kept);
        free(other, 100);
    });
    std::thread::scope(|scope| {
        let kept = kept.addr();
        let there = move || free(std::ptr::without_provenance_mut(kept), 100);
        scope.spawn(there);
    });
    let again = lent(|| {
        let block = allocate(100);
        free(block, 100);
        block
    });
    assert_eq!(again, kept, "freed by another thread");
}

#[test]
fn a_loan_within_a_loan_ends_with_the_outer_one_and_a_panic_ends_it() {
    warm(1000);
    let before = allocations();
    lent(|| {
        lent(|| free(allocate(10), 10));
        free(allocate(10), 10);
    });
    assert_eq!(allocations(), before);
    let _ = std::panic::catch_unwind(|| lent(|| std::panic::resume_unwind(Box::new(()))));
    free(allocate(10), 10);
    assert_eq!(allocations(), before + 1);
}

#[test]
fn a_pool_has_an_end() {
    let most = MAX_POOL_BYTES - 1;
    let block = lent(|| allocate(usize::from(u16::MAX)));
    assert!(!in_pool(block));
    free(block, usize::from(u16::MAX));
    if cfg!(miri) {
        return;
    }
    for _ in 0..3 {
        lent(|| {
            let blocks = [allocate(most), allocate(most)];
            assert!(!in_pool(blocks[1]));
            blocks.iter().for_each(|block| free(*block, most));
        });
        settle();
    }
    let len = THREAD.with(|thread| thread.pool.get().map(|pool| pool.len));
    assert_eq!(len, Some(MAX_POOL_BYTES));
}

#[test]
fn a_block_that_grew_in_the_system_is_missed_whole() {
    lent(|| {
        // SAFETY: allocated with that layout, freed with its new length.
        let block = unsafe { MEMORY.realloc(allocate(10), layout(10), 1 << 20) };
        free(block, 1 << 20);
    });
    settle();
    let block = lent(|| allocate(1 << 20));
    assert!(in_pool(block));
    free(block, 1 << 20);
}

#[test]
fn a_thread_gives_its_pool_back() {
    for _ in 0..3 * MAX_POOLS {
        let worker = std::thread::spawn(|| {
            warm(1000);
            lent(|| {
                let block = allocate(100);
                free(block, 100);
                in_pool(block)
            })
        });
        assert!(worker.join().unwrap());
    }
}

#[derive(Clone, Debug)]
enum Act {
    Allocate {
        len: usize,
        align: u32,
        zeroed: bool,
    },
    Free(usize),
    Resize(usize, usize),
    EndLoan,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1..3000_usize, 0..8_u32, any::<bool>())
            .prop_map(|(len, align, zeroed)| Act::Allocate { len, align, zeroed }),
        2 => any::<usize>().prop_map(Act::Free),
        2 => (any::<usize>(), 1..3000_usize).prop_map(|(at, len)| Act::Resize(at, len)),
        1 => Just(Act::EndLoan),
    ];
    proptest::collection::vec(act, 1..60)
}

/// A block, filled with its byte.
struct Filled(*mut u8, Layout, u8);

impl Filled {
    fn fill(self) -> Filled {
        // SAFETY: the block is that long.
        unsafe { self.0.write_bytes(self.2, self.1.size()) };
        self
    }
    fn intact(&self, len: usize) -> bool {
        // SAFETY: as above, and filled.
        let bytes = unsafe { std::slice::from_raw_parts(self.0, len) };
        bytes.iter().all(|byte| *byte == self.2)
    }
}

/// Performs the acts of one loan; those after its end stay in `acts`.
fn apply(acts: &mut std::vec::IntoIter<Act>, blocks: &mut Vec<Filled>, next: &mut u8) {
    for act in acts {
        *next = next.wrapping_add(1);
        match act {
            Act::Allocate { len, align, zeroed } => {
                let layout = Layout::from_size_align(len, 1 << align).unwrap();
                // SAFETY: the layout is not empty.
                let block = unsafe {
                    if zeroed {
                        MEMORY.alloc_zeroed(layout)
                    } else {
                        MEMORY.alloc(layout)
                    }
                };
                assert_eq!(block.addr() % layout.align(), 0);
                assert!(!zeroed || Filled(block, layout, 0).intact(len));
                blocks.push(Filled(block, layout, *next).fill());
            }
            Act::Free(at) if !blocks.is_empty() => {
                let block = blocks.swap_remove(at % blocks.len());
                assert!(block.intact(block.1.size()));
                // SAFETY: allocated with that layout, freed once.
                unsafe { MEMORY.dealloc(block.0, block.1) };
            }
            Act::Resize(at, len) if !blocks.is_empty() => {
                let mut block = blocks.swap_remove(at % blocks.len());
                // SAFETY: allocated with that layout, replaced by what comes back.
                block.0 = unsafe { MEMORY.realloc(block.0, block.1, len) };
                assert!(block.intact(len.min(block.1.size())));
                block.1 = Layout::from_size_align(len, block.1.align()).unwrap();
                blocks.push(block.fill());
            }
            Act::EndLoan => return,
            Act::Free(_) | Act::Resize(..) => {}
        }
    }
}

proptest! {
    #[test]
    fn blocks_keep_what_is_written_to_them(acts in acts()) {
        // The lists themselves come from the test program's allocator, which is another one.
        let (mut acts, mut blocks, mut next) = (acts.into_iter(), Vec::new(), 0);
        while acts.len() > 0 {
            lent(|| apply(&mut acts, &mut blocks, &mut next));
            settle();
        }
        for block in blocks {
            prop_assert!(block.intact(block.1.size()));
            // SAFETY: allocated with that layout, freed once.
            unsafe { MEMORY.dealloc(block.0, block.1) };
        }
    }
}
