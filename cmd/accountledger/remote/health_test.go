package remote

import (
	"testing"

	"accountledger/cmd/accountledger/cli"
)

// TestHealthURL tests that health uses the address on which the server listens.
func TestHealthURL(t *testing.T) {
	for _, tt := range []struct {
		config cli.Config
		want   string
	}{
		{cli.Config{Listen: "127.0.0.1:8080"}, "http://127.0.0.1:8080/readyz"},
		{cli.Config{Listen: "0.0.0.0:8080"}, "http://localhost:8080/readyz"},
		{cli.Config{Listen: ":8080"}, "http://localhost:8080/readyz"},
		{cli.Config{Listen: "[::]:8443", TLSCert: "tls.crt"}, "https://localhost:8443/readyz"},
		{cli.Config{Listen: "ledger.example:8080"}, "http://ledger.example:8080/readyz"},
		{cli.Config{Listen: "127.0.0.1:8080", Server: "https://ledger.example/"}, "https://ledger.example/readyz"},
	} {
		if is, err := healthURL(tt.config); err != nil || is != tt.want {
			t.Errorf("%+v is asked at %q, %v, want %q", tt.config, is, err, tt.want)
		}
	}
	if _, err := healthURL(cli.Config{Listen: "8080"}); cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("an address without a port: %v", err)
	}
}
