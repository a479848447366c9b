//! The ops as candle calls them: with one to three arguments, on a device each.

use candle::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Tensor};

use super::{Op, Sum};
use crate::memory::{CpuMemory, Memory};

/// candle asks for as many gradients as there are arguments.
fn exactly<const N: usize>(grads: Vec<Option<Tensor>>) -> Result<[Option<Tensor>; N]> {
    grads.try_into().map_err(|_| Error::msg("gradients of other arguments than there were"))
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        self.norm.name()
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward::<CpuMemory>(&[(s, l)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &candle::CudaStorage, l: &Layout) -> Result<(candle::CudaStorage, Shape)> {
        self.forward::<crate::cuda::CudaMemory>(&[(s, l)])
    }
    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = exactly(self.backward(&[arg], grad)?)?;
        Ok(dx)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        self.norm.name()
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward::<CpuMemory>(&[(s1, l1), (s2, l2)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle::CudaStorage,
        l1: &Layout,
        s2: &candle::CudaStorage,
        l2: &Layout,
    ) -> Result<(candle::CudaStorage, Shape)> {
        self.forward::<crate::cuda::CudaMemory>(&[(s1, l1), (s2, l2)])
    }
    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(exactly::<2>(self.backward(&[arg1, arg2], grad)?)?.into())
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        self.norm.name()
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward::<CpuMemory>(&[(s1, l1), (s2, l2), (s3, l3)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle::CudaStorage,
        l1: &Layout,
        s2: &candle::CudaStorage,
        l2: &Layout,
        s3: &candle::CudaStorage,
        l3: &Layout,
    ) -> Result<(candle::CudaStorage, Shape)> {
        self.forward::<crate::cuda::CudaMemory>(&[(s1, l1), (s2, l2), (s3, l3)])
    }
    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        arg3: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(exactly::<3>(self.backward(&[arg1, arg2, arg3], grad)?)?.into())
    }
}

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "add"
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.handed_on::<CpuMemory>(layout)
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle::CudaStorage,
        layout: &Layout,
        _: &candle::CudaStorage,
        _: &Layout,
    ) -> Result<(candle::CudaStorage, Shape)> {
        self.handed_on::<crate::cuda::CudaMemory>(layout)
    }
    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of = |arg: &Tensor| arg.track_op().then(|| grad.clone());
        Ok((of(arg1), of(arg2)))
    }
}

impl Sum {
    fn handed_on<M: Memory>(&self, layout: &Layout) -> Result<(M::Storage, Shape)> {
        let sum = self.0.take::<M>().ok_or_else(|| Error::msg("a sum is handed on once"))?;
        Ok((sum, layout.shape().clone()))
    }
}
