//! The cases of `benches/suite.json`, which `benches/peers/suite.py` reads too: both make the same names of it.

use serde::Deserialize;

const SUITE: &str = include_str!("../suite.json");

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names)] // that is what they are called
pub(crate) enum Op {
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RmsNorm,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layout {
    /// Channels first.
    First,
    /// Channels last.
    Last,
    /// Of the row norms.
    Rows,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

/// One pass or two with their options.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(crate) struct Call {
    pub(crate) forward: bool,
    /// After the forward pass where there is one.
    pub(crate) backward: bool,
    pub(crate) eval: bool,
    pub(crate) residual: bool,
    pub(crate) relu: bool,
    pub(crate) silu: bool,
}

impl TryFrom<String> for Call {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut call = Self::default();
        let mut parts = text.split('+');
        let pass = parts.next().unwrap_or_default();
        (call.forward, call.backward, call.eval) = match pass {
            "fwd" => (true, false, false),
            "bwd" => (false, true, false),
            "fwdbwd" => (true, true, false),
            "eval_fwd" => (true, false, true),
            "eval_bwd" => (false, true, true),
            _ => return Err(format!("no such pass: {pass}")),
        };
        for option in parts {
            match option {
                "residual" => call.residual = true,
                "relu" => call.relu = true,
                "silu" => call.silu = true,
                _ => return Err(format!("no such option: {option}")),
            }
        }
        if call.forward && call.backward && call.residual {
            return Err("no residual with both passes".into()); // they have different second outputs
        }
        Ok(call)
    }
}

impl Call {
    fn name(self) -> String {
        let mut name = if self.eval { "eval_" } else { "" }.to_string();
        for (there, part) in [
            (self.forward, "fwd"),
            (self.backward, "bwd"),
            (self.residual, "+residual"),
            (self.relu, "+relu"),
            (self.silu, "+silu"),
        ] {
            name += if there { part } else { "" };
        }
        name
    }
}

/// One call on tensors of one shape, layout and type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) call: Call,
    pub(crate) ty: Type,
    pub(crate) layout: Layout,
    /// As they lie in memory.
    pub(crate) dims: Vec<usize>,
    /// Channels, or columns.
    pub(crate) channels: usize,
    /// Of a GroupNorm.
    pub(crate) groups: Option<usize>,
}

impl Case {
    /// `batch_norm/fwd+relu/f16/last/32x56x56x256`.
    pub(crate) fn name(&self) -> String {
        let op = match self.op {
            Op::BatchNorm => "batch_norm",
            Op::GroupNorm => "group_norm",
            Op::InstanceNorm => "instance_norm",
            Op::LayerNorm => "layer_norm",
            Op::RmsNorm => "rms_norm",
        };
        let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let dims = self.dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let groups = self.groups.map_or(String::new(), |groups| format!("/g{groups}"));
        format!("{op}/{}/{}/{}/{dims}{groups}", self.call.name(), word(&self.ty), word(&self.layout))
    }

    /// Elements of one tensor.
    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of one tensor.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        let size = match self.ty {
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
        };
        (self.len() * size) as u64
    }

    /// Tensors that the kernels must read or write once: `x` and `y` in a forward pass, `x`, `dy` and `dx` in a backward
    /// pass. The row norms' residual comes with the sum `h` forward, and backward with the gradient that reaches it; the
    /// channel norms' is read again by the backward pass, which writes its gradient.
    pub(crate) fn floor_tensors(&self) -> u64 {
        let Call { forward, backward, residual, .. } = self.call;
        let [of_forward, of_backward] = match residual {
            false => [2, 3],
            true if self.layout == Layout::Rows => [4, 4],
            true => [3, 5],
        };
        u64::from(forward) * of_forward + u64::from(backward) * of_backward
    }

    pub(crate) fn floor_bytes(&self) -> u64 {
        self.floor_tensors() * self.tensor_bytes()
    }

    /// The floor on a CPU. No last cache of a few cores holds a huge tensor from one pass to the next, and a BatchNorm's
    /// statistics are a pass of their own: forward over `x`, backward over `x` and `dy`. Rows and groups fit a cache.
    #[allow(dead_code)] // not asked for by cargo bench
    pub(crate) fn cpu_floor_bytes(&self) -> u64 {
        const HUGE: u64 = 32 << 20;
        let Call { forward, backward, eval, .. } = self.call;
        let twice = self.op == Op::BatchNorm && !eval && self.tensor_bytes() >= HUGE;
        let again = if twice { u64::from(forward) + 2 * u64::from(backward) } else { 0 };
        self.floor_bytes() + again * self.tensor_bytes()
    }
}

/// Which cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A few of each op, for a GPU.
    Quick,
    /// All for a GPU, those of `Quick` first.
    Full,
    /// For a machine without a GPU, and for `benches/peers/cpu`.
    Cpu,
    /// Those of `Cpu` and small ones with every option, for a test on a machine without a GPU.
    Test,
}

/// Every case of the suite to that extent, each once, in the order of the file.
pub(crate) fn cases(extent: Extent) -> Vec<Case> {
    let suite: Suite = serde_json::from_str(SUITE).expect("benches/suite.json is well formed");
    let lines = match extent {
        Extent::Quick => suite.quick,
        Extent::Full => suite.quick.into_iter().chain(suite.full).collect(),
        Extent::Cpu => suite.cpu,
        Extent::Test => suite.test.into_iter().chain(suite.cpu).collect(),
    };
    let mut cases = Vec::new();
    let mut seen = std::collections::BTreeSet::new(); // no random numbers in what tools/instruction-counts counts
    for case in lines.iter().flat_map(Line::cases) {
        if seen.insert(case.name()) {
            cases.push(case);
        }
    }
    cases
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    #[serde(rename = "about")]
    _about: Vec<String>,
    quick: Vec<Line>,
    full: Vec<Line>,
    cpu: Vec<Line>,
    test: Vec<Line>,
}

/// Stands for every combination of what it lists.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Op,
    groups: Option<usize>,
    layouts: Vec<Layout>,
    types: Vec<Type>,
    calls: Vec<Call>,
    shapes: Vec<Vec<usize>>,
}

impl Line {
    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for shape in &self.shapes {
            for &layout in &self.layouts {
                for &ty in &self.types {
                    for &call in &self.calls {
                        cases.push(self.case(shape, layout, ty, call));
                    }
                }
            }
        }
        cases
    }

    fn case(&self, shape: &[usize], layout: Layout, ty: Type, call: Call) -> Case {
        let mut dims = shape.to_vec();
        if layout == Layout::Last {
            dims[1..].rotate_left(1);
        }
        Case { op: self.op, call, ty, layout, dims, channels: shape[1], groups: self.groups }
    }
}
