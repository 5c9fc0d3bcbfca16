package wire

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Test vectors, rows 1 to 7; Standard Webhooks and Svix published V1, V2 and V3.
const (
	v1Secret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	v1ID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	v1Body    = `{"test": 2432232314}`
	v1Want    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	v3Private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	v3Public  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	v3Want    = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)

// signersOf parses secrets, newest first, separated by spaces.
func signersOf(t testing.TB, secrets string) (all Signers) {
	t.Helper()
	for secret := range strings.FieldsSeq(secrets) {
		s, err := ParseSigner(secret)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func verifierOf(t testing.TB, secret string) Verifier {
	t.Helper()
	v, err := ParseVerifier(secret)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var endpoint = &url.URL{Scheme: "https", Host: "crm.example"}

func TestSign(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, secrets, id, seconds, body, want string
	}{
		{"row 1: V1", v1Secret, v1ID, "1614265330", v1Body, v1Want},
		{"row 2: V2, a short key", "whsec_plJ3nmyCDGBKInavdOK15jsl", "msg_loFOjxBNrRLzqYUf", "1731705121", `{"event_type":"ping","data":{"success":true}}`, "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="},
		{"row 3: V3, Ed25519", v3Private, v1ID, "1614265330", v1Body, v3Want},
		{"row 4: empty body", v1Secret, "msg_1", "1614265330", "", "v1,/n9JD+QvCBymh/dplZctdnJL3Jc/7vU4siQ5cz50QYY="},
		{"row 5: UTF-8", v1Secret, "msg_1", "1614265330", `{"name":"Zoë – 日本"}`, "v1,gRUMv8Q+g9EWnAFYsafFR3Q4AwCyesR+IWyDCFDzJew="},
		{"row 6: rotation", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX " + v1Secret, v1ID, "1614265330", v1Body, "v1,/485aUtxlie+TIScVpHggMfqOB4so2KWb7+Gf727B44= " + v1Want},
		{"row 7: both kinds", v1Secret + " " + v3Private, v1ID, "1614265330", v1Body, v1Want + " " + v3Want},
	} {
		signers := signersOf(t, tt.secrets)
		for range 2 { // the second time with a reused hash
			if got := signers.header(tt.id, time.Unix(1614265330, 0), tt.seconds, []byte(tt.body)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
	}
}

func TestEd25519Verifies(t *testing.T) {
	t.Parallel()
	s, err := ParseSigner(v3Private)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Fingerprint(); got != v3Public {
		t.Errorf("public key %s, want %s", got, v3Public)
	}
	public, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(v3Public, publicPrefix))
	signature, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.key.sign("a", "1", []byte("b")), "v1a,"))
	if !ed25519.Verify(public, []byte("a.1.b"), signature) {
		t.Error("the signature does not verify under the public key")
	}
}

// The official library accepts our requests with several signatures, and Verify
// accepts its requests.
func TestVerify(t *testing.T) {
	t.Parallel()
	signers := signersOf(t, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX "+v3Private+" "+v1Secret)
	now := time.Now()
	seconds := strconv.FormatInt(now.Unix(), 10)
	header := http.Header{}
	header.Set(HeaderID, v1ID)
	header.Set(HeaderTimestamp, seconds)
	header.Set(HeaderSignature, signers.header(v1ID, now, seconds, []byte(v1Body)))
	judge, err := standardwebhooks.NewWebhook(v1Secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := judge.Verify([]byte(v1Body), header); err != nil {
		t.Errorf("the official library says %v", err)
	}
	key, another := verifierOf(t, v1Secret), verifierOf(t, "whsec_"+base64.StdEncoding.EncodeToString([]byte("another")))
	if err := Verify([]Verifier{another, key}, header, []byte(v1Body), now); err != nil {
		t.Errorf("Verify = %v", err)
	}
	signature, err := judge.Sign(v1ID, now, []byte(v1Body))
	if err != nil {
		t.Fatal(err)
	}
	official := header.Clone()
	official.Set(HeaderSignature, signature)
	if err := Verify([]Verifier{key}, official, []byte(v1Body), now); err != nil {
		t.Errorf("Verify of the official library's signature = %v", err)
	}

	refused := func(name string, header http.Header, body string, now time.Time) {
		if err := Verify([]Verifier{key}, header, []byte(body), now); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
	refused("another body", header, v1Body+" ", now)
	refused("too old", header, v1Body, now.Add(Tolerance+2*time.Second))
	refused("too new", header, v1Body, now.Add(-Tolerance-2*time.Second))
	for _, name := range []string{HeaderID, HeaderTimestamp, HeaderSignature} {
		without := header.Clone()
		without.Del(name)
		refused("no "+name, without, v1Body, now)
	}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"", "whsec", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", v3Private} {
		if _, err := parseSecret(secret); err == nil {
			t.Errorf("parseSecret(%q) accepted it", secret)
		} else if len(secret) > 8 && strings.Contains(err.Error(), secret[8:]) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

// Row 16: GitHub's header, with GitHub's example.
func TestHubSignature(t *testing.T) {
	t.Parallel()
	keys := signersOf(t, v3Private+" whsec_"+base64.StdEncoding.EncodeToString([]byte("It's a Secret to Everybody")))
	if got, want := keys.hub([]byte("Hello, World!")), "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"; got != want {
		t.Errorf("row 16: %s, want %s", got, want)
	}
	if got := signersOf(t, v3Private).hub(nil); got != "" {
		t.Errorf("without a shared secret: %s, want none", got)
	}
	for _, hub := range []bool{false, true} {
		e := Envelope{URL: endpoint, Signers: keys, HubSignature: hub}
		if got := e.Request(Content{ID: "id", Body: []byte("Hello, World!")}, time.Now()).Header.Get(HeaderHub); (got != "") != hub {
			t.Errorf("row 16: HubSignature %t, the header is %q", hub, got)
		}
	}
}

// Configured headers are in each request.
func TestHeaders(t *testing.T) {
	t.Parallel()
	e := Envelope{URL: endpoint, Signers: signersOf(t, v1Secret), Headers: map[string]string{"x-tenant": "7"}}
	if got := e.Request(Content{ID: "id", Type: jsonType}, time.Now()).Header.Get("X-Tenant"); got != "7" {
		t.Errorf("X-Tenant: %q, want 7", got)
	}
}
