# let kernels of several processes share the GPU's multiprocessors, where the service starts
mkdir -p /tmp/mps /tmp/mpslog; export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps CUDA_MPS_LOG_DIRECTORY=/tmp/mpslog
if command -v nvidia-cuda-mps-control >/dev/null && timeout 20 nvidia-cuda-mps-control -d && timeout 40 python3 -c "import torch; x=torch.randn(512,512,device='cuda'); print('mps', float((x@x).sum())!=0)"; then touch /tmp/mps.on; echo MPS on; else echo MPS off; fi
