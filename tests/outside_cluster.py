"""A Ray cluster that somebody else started: `python outside_cluster.py NODES CPUS`, nodes as processes of this machine.

Prints the address, then obeys lines on stdin: `kill` takes the last node away as a power cut would. Ends with stdin.
"""

import sys

from ray.cluster_utils import Cluster

STORE = 100_000_000  # bytes a node
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


def main(nodes: int, cpus: int) -> None:
    head: dict[str, object] = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE}
    head["_system_config"] = NOTICE  # a lost node is missed after three seconds, not fifteen
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
        print(f"address {cluster.address}", flush=True)
        for line in sys.stdin:
            if line.strip() == "kill":
                cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
                print("killed", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
