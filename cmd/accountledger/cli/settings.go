// Package cli is what the commands of the program share: settings, exit codes,
// output, and files that are written completely or not at all.
package cli

import (
	"encoding"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Config holds all settings. Each field is a setting: its tag is the name of the
// flag and of the member in the YAML file; the environment variable is the name
// in capitals after ACCOUNTLEDGER_. Flags, help and the settings command are
// made from these fields.
type Config struct {
	Config string `koanf:"config" usage:"YAML file with settings"`
	JSON   bool   `koanf:"json" usage:"print JSON instead of text"`

	Data          string `koanf:"data" default:"./data" usage:"data directory of the ledger"`
	MasterKeyFile string `koanf:"master-key-file" usage:"file with the master key; if not set, the key is read from ACCOUNTLEDGER_MASTER_KEY or <data>/master.key"`
	LastSigned    string `koanf:"last-signed" usage:"file, outside the data directory, that keeps the newest signed checkpoint; the ledger then refuses to sign an older or different log"`

	Listen         string         `koanf:"listen" default:"127.0.0.1:8080" usage:"address to listen on; port 0 selects a free port"`
	InsecureListen bool           `koanf:"insecure-listen" usage:"accept connections from other machines without TLS, behind a proxy that terminates it"`
	DebugListen    string         `koanf:"debug-listen" usage:"loopback address, like 127.0.0.1:9090, that serves /metrics and /debug/pprof without a key; if not set, they are not served there"`
	TLSCert        string         `koanf:"tls-cert" usage:"file with the server's certificate and its chain, in PEM; the server reloads it when it changes"`
	TLSKey         string         `koanf:"tls-key" usage:"file with the certificate's private key, in PEM"`
	OIDCIssuer     string         `koanf:"oidc-issuer" usage:"URL of the OpenID provider whose bearer tokens are accepted besides API keys"`
	OIDCAudience   string         `koanf:"oidc-audience" usage:"audience that the aud claim of a token must contain"`
	OIDCScopeClaim string         `koanf:"oidc-scope-claim" usage:"claim with the token's scopes, a list or a string; if not set, scope, or else scp"`
	OIDCAlgorithms []string       `koanf:"oidc-algorithms" usage:"accepted signature algorithms, of RS256, ES256, PS256 and EdDSA; default all"`
	OIDCClockSkew  time.Duration  `koanf:"oidc-clock-skew" default:"30s" usage:"accepted difference between the provider's clock and this one"`
	RateLimit      int            `koanf:"rate-limit" default:"0" usage:"requests per second that each caller may send on average, with bursts of ten seconds' worth; 0 for no limit"`
	AddressLimit   int            `koanf:"address-rate-limit" default:"100" usage:"requests per second without a valid key or token that each client address may send; 0 for no limit"`
	TrustedProxies []netip.Prefix `koanf:"trusted-proxies" usage:"networks, as CIDR, of proxies whose X-Forwarded-For header is trusted"`
	CORSOrigins    []string       `koanf:"cors-origins" usage:"origins, like https://app.example, whose pages may call the API from a browser; * for all"`
	WebhookAllow   []netip.Prefix `koanf:"webhook-allow" usage:"private networks, as CIDR, that webhooks may be delivered to"`
	PublicURL      string         `koanf:"public-url" usage:"URL at which others reach this ledger, like https://ledger.example; used in the source and links of CloudEvents"`
	DeletionGrace  time.Duration  `koanf:"deletion-grace" default:"48h" usage:"time in which a deleted account can be restored, unless the request sets it"`
	ImportMappings string         `koanf:"import-mappings" usage:"directory with the mapping files, <name>.yaml, that imports over HTTP may use"`
	ExportDir      string         `koanf:"export-dir" usage:"directory for scheduled exports, used for nothing else; if not set, there are none"`
	ExportEvery    time.Duration  `koanf:"export-every" default:"24h" usage:"interval between scheduled exports"`
	ExportFormat   string         `koanf:"export-format" default:"ndjson" usage:"format of scheduled exports: ndjson, csv or parquet"`
	ExportKeep     int            `koanf:"export-keep" default:"7" usage:"number of scheduled exports to keep; erased accounts remain in them until they are removed"`
	ShutdownGrace  time.Duration  `koanf:"shutdown-grace" default:"15s" usage:"time that requests and deliveries have to finish at shutdown"`
	LogFormat      string         `koanf:"log-format" default:"text" usage:"text or json"`
	LogLevel       slog.Level     `koanf:"log-level" default:"info" usage:"debug, info, warn or error"`

	Server         string `koanf:"server" usage:"URL of the running server to send the request to"`
	KeyFile        string `koanf:"key-file" usage:"file with the API key; if not set, the key is read from ACCOUNTLEDGER_KEY or <data>/admin.key"`
	CAFile         string `koanf:"ca-file" usage:"file with certificates, in PEM, to trust for the server besides the system's"`
	InsecureServer bool   `koanf:"insecure-server" usage:"send the API key to another machine without TLS"`

	Accept Accept `koanf:"-"`
}

// Accept overrides refusals to open a ledger. They are not settings but flags of
// one command: in a file or in the environment, they would stay in effect.
type Accept struct {
	Uncovered  bool // events that no checkpoint covers, of a log without a sealed head
	MissingWAL bool // a log that lost its write-ahead log
}

// AddFlags adds a flag for each override.
func (a *Accept) AddFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&a.Uncovered, "accept-uncovered", false, "open a ledger of an older version although no signed checkpoint covers its last events; they may be forged")
	flags.BoolVar(&a.MissingWAL, "accept-missing-wal", false, "open a ledger that has lost its write-ahead log; the events in that are lost")
}

// AdminKeyFile is the file of a data directory that holds the first API key.
const AdminKeyFile = "admin.key"

const (
	settingTag = "koanf"
	// EnvPrefix starts the name of each environment variable of the program.
	EnvPrefix = "ACCOUNTLEDGER_"
)

// Setting describes a setting.
type Setting struct {
	Name    string `json:"name"`
	Env     string `json:"env"`
	Value   string `json:"value"` // in effect
	Default string `json:"default"`
	Usage   string `json:"usage"`
	kind    reflect.Type
}

// Settings describes all settings; their values are empty.
func Settings() []Setting {
	t := reflect.TypeFor[Config]()
	all := make([]Setting, t.NumField()-1) // without Accept
	for i := range all {
		f := t.Field(i)
		name := f.Tag.Get(settingTag)
		all[i] = Setting{Name: name, Env: EnvName(name), Default: f.Tag.Get("default"), Usage: f.Tag.Get("usage"), kind: f.Type}
	}
	return all
}

// Values returns the values of all settings, in the order of Settings.
func (c Config) Values() []any {
	v := reflect.ValueOf(c)
	all := make([]any, len(Settings()))
	for i := range all {
		all[i] = v.Field(i).Interface()
	}
	return all
}

// Differing returns the names of the settings whose values differ in c and d.
func (c Config) Differing(d Config) []string {
	var names []string
	was, is := c.Values(), d.Values()
	for i, s := range Settings() {
		if !reflect.DeepEqual(was[i], is[i]) {
			names = append(names, s.Name)
		}
	}
	return names
}

// EnvName returns the environment variable of the named setting.
func EnvName(name string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// AddSettings adds a flag for each named setting.
func AddSettings(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		i := slices.IndexFunc(Settings(), func(s Setting) bool { return s.Name == name })
		switch s := Settings()[i]; s.kind.Kind() {
		case reflect.Bool:
			flags.Bool(s.Name, false, s.Usage)
		case reflect.Slice:
			flags.StringSlice(s.Name, nil, s.Usage)
		default: // a string, which Load parses
			flags.String(s.Name, s.Default, s.Usage)
		}
	}
}

// Load returns the settings of cmd. Flags win over the environment, that over
// the file, and that over the defaults. Load refuses unknown settings in the
// file and ignores them in the environment, which other programs share.
func Load(cmd *cobra.Command) (Config, error) {
	const flat = "\x00" // no separator: names do not nest
	k := koanf.New(flat)
	known := Settings()
	isSetting := func(name string) bool {
		return slices.ContainsFunc(known, func(s Setting) bool { return s.Name == name })
	}
	environment := env.Provider(flat, env.Opt{Prefix: EnvPrefix, TransformFunc: func(variable, value string) (string, any) {
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, EnvPrefix), "_", "-"))
		if !isSetting(name) || value == "" {
			return "", nil
		}
		return name, value
	}})
	flags := func() koanf.Provider {
		return posflag.ProviderWithFlag(cmd.Flags(), flat, k, func(f *pflag.Flag) (string, any) {
			if !isSetting(f.Name) {
				return "", nil
			}
			return f.Name, posflag.FlagVal(cmd.Flags(), f)
		})
	}
	load := func(from koanf.Provider, parser koanf.Parser) error { return k.Load(from, parser) }

	// The flags and the environment name the file, and also override it: they
	// are loaded before and after it.
	if err := load(environment, nil); err != nil {
		return Config{}, err
	}
	if err := load(flags(), nil); err != nil {
		return Config{}, err
	}
	if path := k.String("config"); path != "" {
		inFile := koanf.New(flat)
		if err := inFile.Load(file.Provider(path), yaml.Parser()); err != nil {
			if _, missing := err.(*fs.PathError); missing {
				return Config{}, Usagef("settings: %w", err)
			}
			return Config{}, Usagef("settings: %s is not YAML: %w", path, err)
		}
		for _, name := range inFile.Keys() {
			if !isSetting(name) || name == "config" {
				return Config{}, Usagef("settings: %s: unknown setting %q", path, name)
			}
		}
		k = inFile
		if err := load(environment, nil); err != nil {
			return Config{}, err
		}
		if err := load(flags(), nil); err != nil {
			return Config{}, err
		}
	}
	var c Config
	err := k.UnmarshalWithConf("", &c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: &c, WeaklyTypedInput: true, DecodeHook: mapstructure.ComposeDecodeHookFunc(
			decodeList, mapstructure.StringToTimeDurationHookFunc(), decodeText),
	}})
	if err != nil {
		return Config{}, Usagef("settings: %w", err)
	}
	return c, nil
}

// decodeList splits a list that the environment or the file has as a string.
func decodeList(from, to reflect.Type, value any) (any, error) {
	text, ok := value.(string)
	if !ok || to.Kind() != reflect.Slice {
		return value, nil
	}
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }), nil
}

// decodeText decodes types that are encoding.TextUnmarshalers.
func decodeText(from, to reflect.Type, value any) (any, error) {
	text, ok := value.(string)
	if !ok {
		return value, nil
	}
	target := reflect.New(to)
	reader, ok := target.Interface().(encoding.TextUnmarshaler)
	if !ok {
		return value, nil
	}
	if err := reader.UnmarshalText([]byte(text)); err != nil {
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	return target.Elem().Interface(), nil
}

// Loopback reports whether host names this machine.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
