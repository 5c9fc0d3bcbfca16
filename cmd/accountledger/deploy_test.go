package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"accountledger/cmd/accountledger/cli"
)

const deploy = "../../deploy/"

func deployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(deploy + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	anEnv  = regexp.MustCompile(`\bACCOUNTLEDGER_[A-Z_]+\b`)
	aFlag  = regexp.MustCompile(`\s--([a-z-]+)`)
	option = regexp.MustCompile(`(?m)^([A-Za-z]+)=(.*)$`)
)

// TestDeployedSettings tests that the files in deploy set only settings that
// exist. The program would ignore a misspelled environment variable.
func TestDeployedSettings(t *testing.T) {
	serve := serveCommand()
	for _, name := range []string{"systemd/accountledger.service", "container/Containerfile", "container/compose.yaml"} {
		text := deployed(t, name)
		found := anEnv.FindAllString(text, -1)
		if len(found) == 0 {
			t.Errorf("%s sets nothing", name)
		}
		for _, env := range found {
			if !slices.ContainsFunc(cli.Settings(), func(s cli.Setting) bool { return s.Env == env }) {
				t.Errorf("%s: there is no setting %s", name, env)
			}
		}
	}
	for _, line := range strings.Split(deployed(t, "systemd/accountledger.service"), "\n") {
		if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
			for _, m := range aFlag.FindAllStringSubmatch(command, -1) {
				if serve.Flag(m[1]) == nil && newRoot().PersistentFlags().Lookup(m[1]) == nil {
					t.Errorf("serve has no flag %s", m[1])
				}
			}
		}
	}
	// Include the suggestions, which are comments.
	config := filepath.Join(t.TempDir(), "config.yaml")
	all := regexp.MustCompile(`(?m)^#([a-z-]+:)`).ReplaceAllString(deployed(t, "systemd/config.yaml"), "$1")
	if !strings.Contains(all, "\ntls-cert:") {
		t.Errorf("there are no suggestions:\n%s", all)
	}
	if err := os.WriteFile(config, []byte(all), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "settings", "--config", config)
}

// TestDeployedUnit tests that the unit, the settings and the package agree on
// paths and timeouts.
func TestDeployedUnit(t *testing.T) {
	options := map[string]string{}
	for _, m := range option.FindAllStringSubmatch(deployed(t, "systemd/accountledger.service"), -1) {
		options[m[1]] = m[2]
	}
	var config struct {
		Data       string
		LastSigned string `yaml:"last-signed"`
	}
	if err := yaml.Unmarshal([]byte(deployed(t, "systemd/config.yaml")), &config); err != nil {
		t.Fatal(err)
	}
	data, signed, _ := strings.Cut(options["StateDirectory"], " ")
	if want := "/var/lib/" + data; config.Data != want {
		t.Errorf("data is %q, but the service may write only to %q", config.Data, want)
	}
	// Not below the data directory, so that a restored copy does not replace it.
	if want := "/var/lib/" + signed; signed == "" || path.Dir(config.LastSigned) != want || strings.HasPrefix(config.LastSigned, config.Data+"/") {
		t.Errorf("last-signed is %q, but the service may write only to %q and %q", config.LastSigned, config.Data, want)
	}
	if !strings.Contains(lineWith(deployed(t, "debian/postinst"), "install"), " -m "+strings.TrimPrefix(options["StateDirectoryMode"], "0")+" -o "+options["User"]+" -g "+options["Group"]+" "+path.Dir(config.LastSigned)) {
		t.Errorf("the package does not create %s for the service's user", path.Dir(config.LastSigned))
	}
	if !slices.Contains(strings.Fields(options["RestartPreventExitStatus"]), fmt.Sprint(cli.ExitFaults)) {
		t.Errorf("systemd restarts a server that refuses its files, after which the message is lost")
	}
	credential, key, _ := strings.Cut(options["LoadCredential"], ":")
	if options["Environment"] != "ACCOUNTLEDGER_MASTER_KEY_FILE=%d/"+credential || options["AssertPathExists"] != key {
		t.Errorf("the master key %s is the credential %s, but the server reads it from %s", key, credential, options["Environment"])
	}
	build := deployed(t, "debian/build.sh")
	for _, file := range []string{strings.Fields(options["ExecStart"])[0], strings.TrimPrefix(options["Documentation"], "file://")} {
		if !strings.Contains(build, path.Dir(file)) {
			t.Errorf("the package has no %s", file)
		}
	}
	for _, script := range []string{"debian/postinst", "debian/postrm"} {
		if !strings.Contains(deployed(t, script), key) {
			t.Errorf("%s does not mention %s", script, key)
		}
	}
	if !strings.Contains(deployed(t, "debian/postinst"), "--user-group --home-dir "+config.Data) || !strings.HasSuffix(strings.TrimSpace(lineWith(deployed(t, "debian/postinst"), "useradd")), " "+options["User"]) {
		t.Errorf("the package does not create the user %s", options["User"])
	}
	longer(t, options["TimeoutStopSec"]+"s")
}

func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part+" ") {
			return line
		}
	}
	return ""
}

// longer checks that the timeout wait of a service manager is longer than the
// server's shutdown may take.
func longer(t *testing.T, wait string) {
	t.Helper()
	i := slices.IndexFunc(cli.Settings(), func(s cli.Setting) bool { return s.Name == "shutdown-grace" })
	grace, _ := time.ParseDuration(cli.Settings()[i].Default)
	if d, err := time.ParseDuration(wait); err != nil || d < grace+minGrace {
		t.Errorf("the service manager waits %s, but the server's shutdown may take %s: %v", wait, grace+minGrace, err)
	}
}

// TestDeployedContainers tests that the image, the compose file, Prometheus and
// Grafana agree on ports and files.
func TestDeployedContainers(t *testing.T) {
	image := deployed(t, "container/Containerfile")
	gomod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(gomod), "\ngo ")
	version = strings.Join(strings.Split(strings.Fields(version)[0], ".")[:2], ".")
	if !strings.Contains(image, "golang:"+version+"-") {
		t.Errorf("the image is not built with Go %s, which go.mod requires", version)
	}
	listen := regexp.MustCompile(`ACCOUNTLEDGER_LISTEN=0\.0\.0\.0:(\d+)`).FindStringSubmatch(image)
	if listen == nil || !strings.Contains(image, "EXPOSE "+listen[1]+"\n") {
		t.Errorf("the image listens on %v and exposes another port", listen)
	}
	data := regexp.MustCompile(`ACCOUNTLEDGER_DATA=(\S+)`).FindStringSubmatch(image)[1]
	if !strings.Contains(image, "VOLUME "+data+"\n") || !strings.Contains(image, "/out/data "+data+"\n") {
		t.Errorf("the image has no volume %s", data)
	}
	signed := path.Dir(regexp.MustCompile(`ACCOUNTLEDGER_LAST_SIGNED=(\S+)`).FindStringSubmatch(image)[1])
	if !strings.Contains(image, "VOLUME "+signed+"\n") || !strings.Contains(image, "/out/signed "+signed+"\n") || strings.HasPrefix(signed, data+"/") {
		t.Errorf("the image has no volume %s beside %s", signed, data)
	}
	for _, call := range regexp.MustCompile(`CMD \[(.*)\]`).FindAllStringSubmatch(image, -1) {
		words := strings.Split(strings.ReplaceAll(call[1], `"`, ""), ", ")
		if cmd, _, err := newRoot().Find(words[len(words)-1:]); err != nil || cmd.Name() != words[len(words)-1] {
			t.Errorf("there is no command %s", words[len(words)-1])
		}
	}

	var compose struct {
		Services map[string]struct {
			Environment map[string]string
			Build       struct{ Context, Dockerfile string }
			Volumes     []string
			Ports       []string
			StopGrace   string `yaml:"stop_grace_period"`
			Network     string `yaml:"network_mode"`
		}
	}
	if err := yaml.Unmarshal([]byte(deployed(t, "container/compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	ledger, prometheus, grafana := compose.Services["ledger"], compose.Services["prometheus"], compose.Services["grafana"]
	longer(t, ledger.StopGrace)
	if want := "127.0.0.1:" + listen[1] + ":" + listen[1]; !slices.Equal(ledger.Ports, []string{want}) {
		t.Errorf("the ledger is published as %v, want %s only", ledger.Ports, want)
	}
	if _, err := os.Stat(filepath.Join(deploy+"container", ledger.Build.Context, ledger.Build.Dockerfile)); err != nil {
		t.Error(err)
	}
	if !slices.Contains(ledger.Volumes, "ledger:"+data) {
		t.Errorf("no volume contains the data in %s", data)
	}
	if !slices.Contains(ledger.Volumes, "signed:"+signed) {
		t.Errorf("no volume of its own contains the last signed checkpoint in %s", signed)
	}
	for _, volume := range slices.Concat(prometheus.Volumes, grafana.Volumes) {
		if from, _, _ := strings.Cut(volume, ":"); strings.HasPrefix(from, ".") {
			if _, err := os.Stat(filepath.Join(deploy+"container", from)); err != nil {
				t.Error(err)
			}
		}
	}
	var scrape struct {
		ScrapeConfigs []struct {
			JobName string                       `yaml:"job_name"`
			Static  []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
		RuleFiles []string `yaml:"rule_files"`
	}
	if err := yaml.Unmarshal([]byte(deployed(t, "container/prometheus.yml")), &scrape); err != nil {
		t.Fatal(err)
	}
	private := ledger.Environment["ACCOUNTLEDGER_DEBUG_LISTEN"]
	if prometheus.Network != "service:ledger" || len(scrape.ScrapeConfigs) != 1 || scrape.ScrapeConfigs[0].Static[0].Targets[0] != private {
		t.Errorf("Prometheus in %s scrapes %+v, but the ledger serves metrics on %s", prometheus.Network, scrape.ScrapeConfigs, private)
	}
	if _, port, err := net.SplitHostPort(private); err != nil || port == "9090" {
		t.Errorf("Prometheus also listens on %s: %v", private, err)
	}
	if job := fmt.Sprintf(`job="%s"`, scrape.ScrapeConfigs[0].JobName); !strings.Contains(deployed(t, "prometheus/rules.yml"), job) {
		t.Errorf("the rules do not mention the job %s", job)
	}
	if !slices.Contains(prometheus.Volumes, "../prometheus/rules.yml:/etc/prometheus/"+scrape.RuleFiles[0]+":ro") {
		t.Errorf("Prometheus does not load %v", scrape.RuleFiles)
	}
	if !strings.Contains(deployed(t, "container/grafana/datasource.yaml"), "http://ledger:9090") {
		t.Errorf("Grafana does not use Prometheus at ledger:9090")
	}
	dashboards := regexp.MustCompile(`path: ([^}\s]+)`).FindStringSubmatch(deployed(t, "container/grafana/dashboards.yaml"))[1]
	if !slices.Contains(grafana.Volumes, "../grafana/accountledger.json:"+dashboards+"/accountledger.json:ro") {
		t.Errorf("the dashboard is not in %s", dashboards)
	}
}

// TestDebianPackage builds a package and checks its contents.
func TestDebianPackage(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not installed")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	command := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	for given, want := range map[string]string{"v1.2.3": "1.2.3", "v1.2.3-4-gabc": "1.2.3+4+gabc", "abc123-dirty": "0~abc123+dirty"} {
		command(deploy+"debian/build.sh", program, given, dir)
		packages, err := filepath.Glob(filepath.Join(dir, "accountledger_"+want+"_*.deb"))
		if err != nil || len(packages) != 1 {
			t.Fatalf("version %s makes %v, want %s: %v", given, packages, want, err)
		}
		contents := command("dpkg-deb", "--contents", packages[0])
		for _, line := range []string{`-rwxr-xr-x root/root .* \./usr/bin/accountledger\n`, `-rw-r--r-- root/root .* \./etc/accountledger/config\.yaml\n`,
			`-rw-r--r-- root/root .* \./usr/lib/systemd/system/accountledger\.service\n`, `\./usr/share/doc/accountledger/operation\.md\n`} {
			if !regexp.MustCompile(line).MatchString(contents) {
				t.Errorf("the package has no %s:\n%s", line, contents)
			}
		}
		if control := command("dpkg-deb", "--info", packages[0]); strings.Contains(control, "@") && regexp.MustCompile(`@[A-Z]+@`).MatchString(control) {
			t.Errorf("control has placeholders:\n%s", control)
		}
	}
}

// TestNotify tests that the server notifies systemd when it is ready and when it
// stops.
func TestNotify(t *testing.T) {
	dir, err := os.MkdirTemp("", "al") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "s"))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	p := startServer(t, filepath.Join(t.TempDir(), "data"))
	notified := func() string {
		deadline, _ := ctx.Deadline()
		socket.SetReadDeadline(deadline)
		text := make([]byte, 64)
		n, err := socket.Read(text)
		if err != nil {
			t.Fatalf("systemd was not notified: %v", err)
		}
		return string(text[:n])
	}
	if is := notified(); is != "READY=1" {
		t.Errorf("notified of %s, want READY=1", is)
	}
	if err := p.stop(ctx); err != nil {
		t.Fatal(err)
	}
	if is := notified(); is != "STOPPING=1" {
		t.Errorf("notified of %s, want STOPPING=1", is)
	}
}
