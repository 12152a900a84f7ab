# What a machine is, for `deployctl plan` and `up` on it: sections of plain text, parsed by provision/host_facts.py.
# Runs as root over SSH and changes nothing.
section() { printf '== %s\n' "$1"; }
section os; cat /etc/os-release 2>/dev/null
section machine; uname -m
section id; cat /etc/machine-id 2>/dev/null
section cpus; nproc
section meminfo; cat /proc/meminfo
section cpuinfo; grep -m1 -E '^(flags|Features)' /proc/cpuinfo
section gpus; nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits 2>/dev/null
section disk; df --output=avail -B1 /var/lib 2>/dev/null | tail -n 1
section systemd; systemctl --version 2>/dev/null | head -n 1
section python
for name in python3 python3.11 python3.12 python3.13; do
  "$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
done
section held; ps -u deployctl-engine -o rss= 2>/dev/null
section listening; cat /proc/net/tcp /proc/net/tcp6 2>/dev/null
section vm; cat /etc/deployctl/vm.json 2>/dev/null
exit 0
