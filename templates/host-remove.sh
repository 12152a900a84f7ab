# Ends and deletes everything that deployctl has put on a machine, and then looks at what is left.
# Runs as root over SSH; may be cut off anywhere and run again. $1: "keep" leaves downloaded models and packages.
# Prints lines "ended PID ARGS", "left process PID ARGS", "left file PATH", "kept BYTES PATH".
state=/var/lib/deployctl
units="deployctl-stage0.service deployctl-agent.service deployctl.socket deployctl-server.service deployctl-engine.service"
users="deployctl-server deployctl-engine"
other="/etc/deployctl /run/deployctl /var/cache/deployctl-agent /var/cache/deployctl-engine \
/etc/sysusers.d/deployctl.conf /etc/tmpfiles.d/deployctl.conf"

ours() {  # what runs from our folders, or as one of our users; not this script
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    words=$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null) || continue
    case "$words" in *"$state"/*|*/etc/deployctl/*) echo "$pid $words"; continue ;; esac
    owner=$(stat -c %U "$folder" 2>/dev/null) || continue
    for user in $users; do [ "$owner" = "$user" ] && echo "$pid $words"; done
  done
}

ours | sed 's/^/ended /'
# shellcheck disable=SC2086
systemctl disable --now $units >/dev/null 2>&1
# shellcheck disable=SC2086
systemctl reset-failed $units >/dev/null 2>&1
ours | while read -r pid words; do kill -KILL "$pid" 2>/dev/null; done
for unit in $units; do rm -f "/etc/systemd/system/$unit"; done
systemctl daemon-reload >/dev/null 2>&1
if [ "$1" = keep ] && [ -d "$state" ]; then
  find "$state" -mindepth 1 -maxdepth 1 ! -name models ! -name hub ! -name pip -exec rm -rf {} +
else
  rm -rf "$state"
fi
# shellcheck disable=SC2086
rm -rf $other
for user in $users; do userdel "$user" >/dev/null 2>&1; done
groupdel deployctl >/dev/null 2>&1

ours | sed 's/^/left process /'
for path in $other; do [ -e "$path" ] && echo "left file $path"; done
for unit in $units; do [ -e "/etc/systemd/system/$unit" ] && echo "left file /etc/systemd/system/$unit"; done
for user in $users; do id "$user" >/dev/null 2>&1 && echo "left file user $user"; done
if [ -e "$state" ]; then
  if [ "$1" = keep ]; then echo "kept $(du -sb "$state" | cut -f1) $state"; else echo "left file $state"; fi
fi
exit 0
