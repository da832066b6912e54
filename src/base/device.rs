//! The only file that opens devices. An explicit choice never falls back to another device.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use super::error::{Error, Result};

/// What `--device` accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first accelerator this binary was built for and this machine has, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// One CUDA GPU by number.
    Cuda(usize),
    /// The Apple GPU.
    Metal,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// `Unsupported` when the binary was built without that device or the machine has none.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Auto if candle_core::utils::cuda_is_available() => Self::Cuda(0).open(),
            Self::Auto if candle_core::utils::metal_is_available() => Self::Metal.open(),
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(not_built("cuda", "cuda")),
            Self::Metal if !candle_core::utils::metal_is_available() => Err(not_built("metal", "metal")),
            Self::Cuda(index) => Device::new_cuda(index).map_err(|e| refused(format!("cuda:{index}"), &e)),
            Self::Metal => Device::new_metal(0).map_err(|e| refused("metal".into(), &e)),
        }
    }
}

fn not_built(device: &str, feature: &str) -> Error {
    Error::Unsupported {
        what: format!("--device {device}"),
        why: format!("this binary was built without the `{feature}` feature"),
        remedy: format!("rebuild with `cargo build --release --features {feature}`, or use --device cpu"),
    }
}

fn refused(what: String, source: &candle_core::Error) -> Error {
    Error::Unsupported {
        what: format!("--device {what}"),
        why: format!("the driver refused it: {source}"),
        remedy: "check the driver (nvidia-smi) and the device number, or use --device cpu".into(),
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "auto" => Ok(Self::Auto),
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "metal" => Ok(Self::Metal),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", n)) => n.parse().map(Self::Cuda).map_err(|_| format!("'{n}' is no device number")),
            _ => Err("expected auto, cpu, cuda, cuda:N or metal".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// The number types that weights are held in, or that activations are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<DtypeChoice> for DType {
    fn from(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::F32 => Self::F32,
            DtypeChoice::F16 => Self::F16,
            DtypeChoice::Bf16 => Self::BF16,
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err("expected f32, f16 or bf16".into()),
        }
    }
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_print_as_they_parse() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn an_explicit_device_does_not_fall_back() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
