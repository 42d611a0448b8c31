"""A Ray cluster that somebody else started: `python outside_cluster.py NODES CPUS [dashboard]`, nodes as processes of
this machine.

Prints the address, and the dashboard's URL where one is asked for, then obeys lines on stdin: `kill` takes the last
node away as a power cut would. Ends with stdin.
"""

import sys
import tempfile
from pathlib import Path

from ports import free_port  # run as a script: its own folder is on the path
from ray.cluster_utils import Cluster

STORE = 100_000_000  # bytes a node
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


def main(nodes: int, cpus: int, dashboard: bool) -> None:
    head: dict[str, object] = {"num_cpus": cpus, "include_dashboard": dashboard, "object_store_memory": STORE}
    head["_system_config"] = NOTICE  # a lost node is missed after three seconds, not fifteen
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets have short names
        if dashboard:  # another Ray may have the usual ports and folder
            head |= {"dashboard_port": free_port(), "dashboard_agent_listen_port": 0, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
            print(f"address {cluster.address}", flush=True)
            if dashboard:
                # as `ray start`: jobs join the cluster that is named there
                Path(folder, "ray_current_cluster").write_text(cluster.address)
                print(f"dashboard http://{cluster.head_node.webui_url}", flush=True)
            obey(cluster)
        finally:
            cluster.shutdown()


def obey(cluster: Cluster) -> None:
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
            print("killed", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "dashboard" in sys.argv[3:])
