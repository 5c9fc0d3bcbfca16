package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"accountledger/testdata/imports"
)

var walked = regexp.MustCompile("(?s)<!-- walk: ([a-z]+) -->\n```sh\n(.*?)```")

// stage simulates the machine in docs/operation.md: its directories are below
// $ROOT, and its service is a process of this shell.
const stage = `
set -euo pipefail
install() { local all=(); while [ $# -gt 0 ]; do if [ "$1" = -o ]; then shift; else all+=("$1"); fi; shift; done; command install "${all[@]}"; }
chown() { :; }
runuser() { shift 3; "$@"; }
systemctl() {
	[ "$2" = accountledger ]
	case $1 in
	start)
		rm -f "$ROOT/says"; mkfifo "$ROOT/says"
		ACCOUNTLEDGER_MASTER_KEY_FILE=$ROOT/etc/accountledger/master.key accountledger serve --config "$ROOT/etc/accountledger/config.yaml" >"$ROOT/says" 2>>"$ROOT/log" &
		served=$!
		read -r _ <"$ROOT/says" ;;
	stop) kill -TERM $served; wait $served ;;
	esac
}
trap 'kill -9 ${served:-} 2>/dev/null || true' EXIT
mkdir -p "$ROOT/etc/accountledger" "$ROOT/var/lib/accountledger-signed" "$ROOT/var/backups"
printf 'data: %s\nlast-signed: %s\n' "$ROOT/var/lib/accountledger" "$ROOT/var/lib/accountledger-signed/checkpoint" >"$ROOT/etc/accountledger/config.yaml"
accountledger master-key "$ROOT/etc/accountledger/master.key"
accountledger import --config "$ROOT/etc/accountledger/config.yaml" --master-key-file "$ROOT/etc/accountledger/master.key" --mapping people-208.yaml people-208.json
systemctl start accountledger
`

// TestWalk runs the steps for backup, restore, roll-back and moving in
// docs/operation.md.
func TestWalk(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	page, err := os.ReadFile("../../docs/operation.md")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for name, text := range map[string][]byte{"people-208.json": imports.People, "people-208.yaml": imports.PeopleMapping} {
		if err := os.WriteFile(filepath.Join(root, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script, names := stage, ""
	for _, m := range walked.FindAllStringSubmatch(string(page), -1) {
		names += m[1] + " "
		if m[1] == "restore" { // lose something
			script += `
echo '{"origin":"created","identities":[{"provider":"self","email":"late@example.com"}]}' |
	accountledger accounts create - --server "http://$ACCOUNTLEDGER_LISTEN" --key-file "$ROOT/var/lib/accountledger/admin.key"
`
		}
		script += regexp.MustCompile(`/(etc/accountledger|var/(lib|backups)/)`).ReplaceAllString(m[2], "$$ROOT/$1")
	}
	if names != "backup rehearse restore rollback move " {
		t.Errorf("the page has the steps %s", names)
	}
	script += `
accountledger verify --data "$ROOT/var/lib/accountledger"
systemctl stop accountledger
accountledger check --data "$ROOT/var/lib/accountledger.old" --master-key-file "$ROOT/etc/accountledger/master.key"
accountledger check --data "$ROOT"/var/lib/accountledger.replaced-* --master-key-file "$ROOT/etc/accountledger/master.key"
! [ -e "$ROOT/var/backups/accountledger/monday/master.key" ]
`
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	cmd := exec.CommandContext(t.Context(), bash, "-c", script)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "ROOT="+root, "ACCOUNTLEDGER_LISTEN="+address)
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(root, "log"))
		t.Fatalf("%v\n%s\n%s", err, out, log)
	}
	for _, text := range []string{"backed up", "equal a rebuild", "checked: all files are undamaged", "1 event after", "goes on after event", "admin.key", `"status":"ready"`, "verified: "} {
		if !strings.Contains(string(out), text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
}
