package main

import (
	"encoding"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
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

// config is the one table of settings. A field is a setting: its name is that
// of the flag and of the member in the YAML file, and in the environment it is
// written in capitals after ACCOUNTLEDGER_. Flags, help and the settings
// command are made of it.
type config struct {
	Config string `koanf:"config" usage:"YAML file with settings"`
	JSON   bool   `koanf:"json" usage:"print JSON instead of text"`

	Data          string `koanf:"data" default:"./data" usage:"directory of the ledger"`
	MasterKeyFile string `koanf:"master-key-file" usage:"file with the master key; without it the key is in ACCOUNTLEDGER_MASTER_KEY or else in <data>/master.key"`

	Listen         string         `koanf:"listen" default:"127.0.0.1:8080" usage:"address to serve on; port 0 takes a free one"`
	InsecureListen bool           `koanf:"insecure-listen" usage:"serve other machines too, without TLS: behind a proxy that has it"`
	DebugListen    string         `koanf:"debug-listen" usage:"address of this machine, like 127.0.0.1:9090, to serve /metrics and /debug/pprof on without a key; by default there is none"`
	TLSCert        string         `koanf:"tls-cert" usage:"file with the certificate to serve with, and its chain, in PEM; a changed file is served to new connections"`
	TLSKey         string         `koanf:"tls-key" usage:"file with the certificate's private key, in PEM"`
	OIDCIssuer     string         `koanf:"oidc-issuer" usage:"URL of the OpenID provider whose bearer tokens are accepted besides API keys"`
	OIDCAudience   string         `koanf:"oidc-audience" usage:"what the tokens must have among their aud"`
	OIDCScopeClaim string         `koanf:"oidc-scope-claim" usage:"claim of the tokens with the scopes, a list or a text; by default scope, or else scp"`
	OIDCAlgorithms []string       `koanf:"oidc-algorithms" usage:"what tokens may be signed with, of RS256, ES256, PS256 and EdDSA; by default all of them"`
	OIDCClockSkew  time.Duration  `koanf:"oidc-clock-skew" default:"30s" usage:"by how much the provider's clock may differ"`
	RateLimit      int            `koanf:"rate-limit" default:"0" usage:"requests a second and caller on average, ten seconds' worth at once; 0 for any number"`
	AddressLimit   int            `koanf:"address-rate-limit" default:"100" usage:"the same for requests without a valid key or token, a second and address"`
	TrustedProxies []netip.Prefix `koanf:"trusted-proxies" usage:"networks, as CIDR, of proxies whose X-Forwarded-For is believed"`
	CORSOrigins    []string       `koanf:"cors-origins" usage:"origins, like https://app.example, whose pages may call the API from a browser; * for all"`
	WebhookAllow   []netip.Prefix `koanf:"webhook-allow" usage:"networks, as CIDR, that webhooks may reach although they are private"`
	PublicURL      string         `koanf:"public-url" usage:"where others reach this ledger, like https://ledger.example; the source of CloudEvents, and what they refer to"`
	DeletionGrace  time.Duration  `koanf:"deletion-grace" default:"48h" usage:"how long a deleted account can be restored, where the request does not say it"`
	ImportMappings string         `koanf:"import-mappings" usage:"directory of mapping files, <name>.yaml, that imports over HTTP may name"`
	ExportDir      string         `koanf:"export-dir" usage:"directory for scheduled exports, one of their own; none: no exports"`
	ExportEvery    time.Duration  `koanf:"export-every" default:"24h" usage:"how often to export"`
	ExportFormat   string         `koanf:"export-format" default:"ndjson" usage:"ndjson, csv or parquet"`
	ExportKeep     int            `koanf:"export-keep" default:"7" usage:"how many scheduled exports to keep; an erased person is in them until then"`
	ShutdownGrace  time.Duration  `koanf:"shutdown-grace" default:"15s" usage:"how long requests and deliveries may take to end at shutdown"`
	LogFormat      string         `koanf:"log-format" default:"text" usage:"text or json"`
	LogLevel       slog.Level     `koanf:"log-level" default:"info" usage:"debug, info, warn or error"`

	Server         string `koanf:"server" usage:"URL of the running server, to ask it instead of opening the data directory"`
	KeyFile        string `koanf:"key-file" usage:"file with the API key to ask the server with; without it the key is in ACCOUNTLEDGER_KEY or else in <data>/admin.key"`
	CAFile         string `koanf:"ca-file" usage:"file with certificates, in PEM, that the server's is trusted by besides the system's"`
	InsecureServer bool   `koanf:"insecure-server" usage:"send the API key in clear to a server on another machine"`
}

const (
	settingTag = "koanf"
	envPrefix  = "ACCOUNTLEDGER_"
)

// setting is a row of the table.
type setting struct {
	Name    string `json:"name"`
	Env     string `json:"env"`
	Value   string `json:"value"` // in effect
	Default string `json:"default"`
	Usage   string `json:"usage"`
	kind    reflect.Type
}

func settings() []setting {
	t := reflect.TypeFor[config]()
	all := make([]setting, t.NumField())
	for i := range all {
		f := t.Field(i)
		name := f.Tag.Get(settingTag)
		all[i] = setting{Name: name, Env: envName(name), Default: f.Tag.Get("default"), Usage: f.Tag.Get("usage"), kind: f.Type}
	}
	return all
}

// differing names the settings in which c and d differ.
func (c config) differing(d config) []string {
	var names []string
	for i, s := range settings() {
		if !reflect.DeepEqual(reflect.ValueOf(c).Field(i).Interface(), reflect.ValueOf(d).Field(i).Interface()) {
			names = append(names, s.Name)
		}
	}
	return names
}

func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// addSettings makes flags of the named settings.
func addSettings(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		i := slices.IndexFunc(settings(), func(s setting) bool { return s.Name == name })
		switch s := settings()[i]; s.kind.Kind() {
		case reflect.Bool:
			flags.Bool(s.Name, false, s.Usage)
		case reflect.Slice:
			flags.StringSlice(s.Name, nil, s.Usage)
		default: // text until loadConfig reads it with everything else
			flags.String(s.Name, s.Default, s.Usage)
		}
	}
}

// loadConfig is the settings of a command: flags before the environment before
// the file before the defaults. What is not a setting is refused in the file,
// and ignored in the environment, where others have theirs.
func loadConfig(cmd *cobra.Command) (config, error) {
	const flat = "\x00" // no separator: names do not nest
	k := koanf.New(flat)
	known := settings()
	isSetting := func(name string) bool {
		return slices.ContainsFunc(known, func(s setting) bool { return s.Name == name })
	}
	environment := env.Provider(flat, env.Opt{Prefix: envPrefix, TransformFunc: func(variable, value string) (string, any) {
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, envPrefix), "_", "-"))
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

	// Flags and environment first, for they name the file, and again after it.
	if err := load(environment, nil); err != nil {
		return config{}, err
	}
	if err := load(flags(), nil); err != nil {
		return config{}, err
	}
	if path := k.String("config"); path != "" {
		inFile := koanf.New(flat)
		if err := inFile.Load(file.Provider(path), yaml.Parser()); err != nil {
			if _, missing := err.(*fs.PathError); missing {
				return config{}, usagef("settings: %w", err)
			}
			return config{}, usagef("settings: %s is not YAML: %w", path, err)
		}
		for _, name := range inFile.Keys() {
			if !isSetting(name) || name == "config" {
				return config{}, usagef("settings: %s: there is no setting %q", path, name)
			}
		}
		k = inFile
		if err := load(environment, nil); err != nil {
			return config{}, err
		}
		if err := load(flags(), nil); err != nil {
			return config{}, err
		}
	}
	var c config
	err := k.UnmarshalWithConf("", &c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: &c, WeaklyTypedInput: true, DecodeHook: mapstructure.ComposeDecodeHookFunc(
			decodeList, mapstructure.StringToTimeDurationHookFunc(), decodeText),
	}})
	if err != nil {
		return config{}, usagef("settings: %w", err)
	}
	return c, nil
}

// decodeList splits what the environment or the file gives as one text.
func decodeList(from, to reflect.Type, value any) (any, error) {
	text, ok := value.(string)
	if !ok || to.Kind() != reflect.Slice {
		return value, nil
	}
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }), nil
}

// decodeText reads the types that read themselves.
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

// masterKeyEnv holds the master key itself. It is no setting: a key has no
// business in a flag, which every process can read, or in a file of settings.
const masterKeyEnv = envPrefix + "MASTER_KEY"

func settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "List all settings: flag, environment variable, value in effect, default, meaning",
		Long: `List all settings and the values in effect. Each can be given as a flag of the
commands that use it, as an environment variable, or as a member of a YAML file
(--config); the first of these that has it wins. The master key itself is never
a setting but in ` + masterKeyEnv + ` or in a file, and so is an API key, in
` + keyEnv + ` or in a file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			all, out := settings(), newConsole(cmd, c)
			var rows [][]any
			for i := range all {
				s := &all[i]
				s.Value = strings.Trim(fmt.Sprint(reflect.ValueOf(c).Field(i)), "[]")
				rows = append(rows, []any{"--" + s.Name, s.Env, s.Value, s.Default, s.Usage})
			}
			if c.JSON {
				return out.document(all)
			}
			out.table([]any{"flag", "environment", "value", "default", "meaning"}, rows)
			return nil
		},
	}
	for _, s := range settings() {
		if s.Name != "config" && s.Name != "json" { // every command has these
			addSettings(cmd.Flags(), s.Name)
		}
	}
	return cmd
}

// publicURL is the setting of this name, checked.
func (c config) publicURL() (string, error) {
	if c.PublicURL == "" {
		return "", nil
	}
	u, err := url.Parse(c.PublicURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", usagef("public-url is %q; it can be an https URL without query and credentials", c.PublicURL)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// newLogger makes the logger of a server, whose level may be changed.
func newLogger(cmd *cobra.Command, c config, level *slog.LevelVar) (*slog.Logger, error) {
	if err := oneOf("log-format", c.LogFormat, "text", "json"); err != nil {
		return nil, err
	}
	level.Set(c.LogLevel)
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options)), nil
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options)), nil
}

// readTrimmed reads a small file that holds one line.
func readTrimmed(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}
