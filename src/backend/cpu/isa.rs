//! The instruction sets that products and attention have kernels for, and which of them this processor has.
//!
//! Whatever is chosen, products in 8 bits and bf16 (none of which is too large for `f32`) give the same bits, and so do `f32` and attention where multiply-add is fused.

/// An instruction set with a kernel; of one architecture the slowest first. All give the same bits, as said above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of loops.
    Portable,
    /// 64-bit Arm: vectors that multiply and sum four 8-bit values a lane.
    NeonDotprod,
    /// 64-bit Arm: products of two rows with two columns.
    NeonI8mm,
    /// 256-bit vectors; 8 bits are multiplied as 16.
    Avx2,
    /// 256-bit vectors; in 8 bits they multiply and sum four values a lane.
    AvxVnni,
    /// 512-bit vectors, the same.
    Avx512Vnni,
    /// The same with products of pairs in bf16.
    Avx512Bf16,
    /// Matrix tiles.
    Amx,
}

/// Whether this processor has 512-bit vectors that round to bf16 and multiply in it.
#[cfg(target_arch = "x86_64")]
pub(super) fn bf16_vectors() -> bool {
    Isa::Avx512Vnni.available() && is_x86_feature_detected!("avx512bf16")
}

/// Environment variable that names the best instruction set the kernels may use: for tests and comparisons. The loops in `f32`
/// that are left to the compiler, and `rten-gemm`, choose for themselves.
pub const ISA_VARIABLE: &str = "UMM_ISA";

impl Isa {
    /// Of one architecture the slowest first.
    pub const ALL: [Isa; 8] = [
        Isa::Portable,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Avx512Bf16,
        Isa::Amx,
    ];

    /// As in [`ISA_VARIABLE`] and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx",
        }
    }

    /// The one of this [`Isa::name`].
    pub fn named(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        Isa::ALL.map(Isa::name).join(", ")
    }

    /// Whether this processor, under this system, can run it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => bf16_vectors() && super::bf16::pairs_sum_as_tiles(),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => bf16_vectors() && super::amx::available(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => super::int8::neon::dotprod_available(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => super::int8::neon::i8mm_available(),
            // Of another architecture.
            _ => false,
        }
    }

    /// Whether [`ISA_VARIABLE`], where it is set, names one.
    ///
    /// # Errors
    /// A message that says which names there are.
    pub fn check_variable() -> Result<(), String> {
        let Some(value) = std::env::var_os(ISA_VARIABLE) else {
            return Ok(());
        };
        if value.to_str().and_then(Isa::named).is_some() {
            return Ok(());
        }
        let names = Isa::names();
        Err(format!(
            "{ISA_VARIABLE}={value:?} names no instruction set: unset it, or use one of {names}"
        ))
    }

    /// The best available one, no better than [`ISA_VARIABLE`] says where it is set to one of the names.
    pub fn best() -> Isa {
        let limit = std::env::var(ISA_VARIABLE).ok();
        let limit = limit.as_deref().and_then(Isa::named).unwrap_or(Isa::Amx);
        let available = |isa: &Isa| *isa <= limit && isa.available();
        Isa::ALL
            .into_iter()
            .rev()
            .find(available)
            .unwrap_or(Isa::Portable)
    }
}
