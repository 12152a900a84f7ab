"""`deployctl doctor`: names the cause of what is wrong, and what to type.

    collect (edge) ─► Evidence ─► RULES, in order (pure) ─► Findings, the likeliest cause first

evidence.py   what may be known about a deployment          rule.py    a rule, and how a table of them is asked
gpu.py, machine.py, software.py, network.py, cloud.py       the tables
probe.py      one script for the machine, and its answer    collect.py  mailbox, logs, SSH, the endpoint
"""
