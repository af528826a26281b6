//! The instruction sets that products and attention have kernels for, and which of them this processor has.
//!
//! Products in 8 bits and in bf16 give the same bits whatever is chosen, as long as none of them overflows `f32`. So do
//! `f32` products and attention, where multiply-add is fused.

/// An instruction set with kernels. Within an architecture, slower ones come first. All give the same
/// bits, as the module says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of loops.
    Portable,
    /// 64-bit Arm: vectors that multiply and sum four 8-bit values per lane.
    NeonDotprod,
    /// 64-bit Arm: products of two rows with two columns.
    NeonI8mm,
    /// 256-bit vectors; 8-bit values are multiplied as 16-bit ones.
    Avx2,
    /// 256-bit vectors that multiply and sum four 8-bit values per lane.
    AvxVnni,
    /// 512-bit vectors that do the same.
    Avx512Vnni,
    /// The same, with products of bf16 pairs.
    Avx512Bf16,
    /// Matrix tiles.
    Amx,
}

/// Returns whether this processor has 512-bit vectors that round to bf16 and multiply it.
#[cfg(target_arch = "x86_64")]
pub(super) fn bf16_vectors() -> bool {
    Isa::Avx512Vnni.available() && is_x86_feature_detected!("avx512bf16")
}

/// Environment variable that names the best instruction set the kernels may use: for tests and comparisons. `f32` loops
/// that are left to the compiler, and `rten-gemm`, choose for themselves.
pub const ISA_VARIABLE: &str = "UMM_ISA";

impl Isa {
    /// All instruction sets; within an architecture, slower ones come first.
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

    /// Returns the name used in [`ISA_VARIABLE`] and in reports.
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

    /// Finds the instruction set of an [`Isa::name`].
    pub fn named(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Lists all names, for messages.
    pub fn names() -> String {
        Isa::ALL.map(Isa::name).join(", ")
    }

    /// Returns whether this processor, under this operating system, can run it.
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
            // Belongs to another architecture.
            _ => false,
        }
    }

    /// Checks that [`ISA_VARIABLE`], if set, names an instruction set.
    ///
    /// # Errors
    /// A message that lists the names.
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

    /// Returns the best available instruction set, no better than the one [`ISA_VARIABLE`] names, if any.
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
