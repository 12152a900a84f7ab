"""`python -m provision.doctor`: the table of docs/troubleshooting.md."""

from provision.doctor.rules import page_table

if __name__ == "__main__":
    print(page_table())
