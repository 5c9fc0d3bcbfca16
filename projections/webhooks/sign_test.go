package webhooks

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accountledger/domain"
	"accountledger/eventstore"
)

// The vectors of DELIVERY.md, rows 1 to 7; V1, V2 and V3 are published ones of
// Standard Webhooks and Svix.
const (
	v1Secret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	v1ID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	v1Body    = `{"test": 2432232314}`
	v1Want    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	v3Private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	v3Public  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	v3Want    = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)

// signersOf are keys, newest first, separated by spaces.
func signersOf(t testing.TB, secrets string) (all signers) {
	t.Helper()
	for secret := range strings.FieldsSeq(secrets) {
		s, err := parseSigner(secret)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, signingKey{signer: s})
	}
	return all
}

// anySigner is for tests that are not about signatures.
func anySigner() signers { return signers{{signer: newHMACSigner([]byte("key"))}} }

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
		for range 2 { // the second time with a hash used before
			if got := signers.header(tt.id, time.Unix(1614265330, 0), tt.seconds, []byte(tt.body)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
	}
	key, err := ParseSecret(v1Secret)
	if err != nil {
		t.Fatal(err)
	}
	if got := Sign(key, v1ID, time.Unix(1614265330, 0), []byte(v1Body)); got != v1Want {
		t.Errorf("Sign = %s, want %s", got, v1Want)
	}
}

func TestEd25519Verifies(t *testing.T) {
	t.Parallel()
	s, err := parseSigner(v3Private)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.fingerprint(); got != v3Public {
		t.Errorf("public key %s, want %s", got, v3Public)
	}
	public, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(v3Public, publicPrefix))
	signature, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.sign("a", "1", []byte("b")), "v1a,"))
	if !ed25519.Verify(public, []byte("a.1.b"), signature) {
		t.Error("the signature does not verify under the public key")
	}
}

// The official verifier must take what we send with several signatures, and
// we must take what it sends.
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
	key, _ := ParseSecret(v1Secret)
	if err := Verify([][]byte{[]byte("another"), key}, header, []byte(v1Body), now); err != nil {
		t.Errorf("Verify = %v", err)
	}
	signature, err := judge.Sign(v1ID, now, []byte(v1Body))
	if err != nil {
		t.Fatal(err)
	}
	official := header.Clone()
	official.Set(HeaderSignature, signature)
	if err := Verify([][]byte{key}, official, []byte(v1Body), now); err != nil {
		t.Errorf("Verify of the official library's signature = %v", err)
	}

	refused := func(name string, header http.Header, body string, now time.Time) {
		if err := Verify([][]byte{key}, header, []byte(body), now); !errors.Is(err, ErrSignature) {
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
		if _, err := ParseSecret(secret); err == nil {
			t.Errorf("ParseSecret(%q) took it", secret)
		} else if len(secret) > 8 && strings.Contains(err.Error(), secret[8:]) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

// Row 10, and I7: the id is the event's, whatever sends it and how often.
func TestI7IDIsOfTheEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	w.execute("a.b", domain.CreateAccount{Origin: domain.OriginRegistered, Identities: []domain.NewIdentity{{
		IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{Email: "ada@example.com"}}}})
	charset := regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	var first []string
	for range 3 {
		for rec, err := range w.log.ReadStream(t.Context(), domain.AccountStream("a.b"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			s := newSlot(rec)
			messages, err := s.open(opener{w.config.Codec, w.config.Ledger}, time.Now())
			if err != nil || len(messages) != 3 {
				t.Fatalf("%d messages, %v; want three", len(messages), err)
			}
			for i, m := range messages {
				if !charset.MatchString(m.event.ID) {
					t.Errorf("id %q has characters a webhook-id must not have", m.event.ID)
				}
				if len(first) < 3 {
					first = append(first, m.event.ID)
				} else if first[i] != m.event.ID {
					t.Errorf("id %s, and before %s", m.event.ID, first[i])
				}
			}
		}
	}
	if first[0] == first[1] || first[0] == first[2] || first[1] == first[2] {
		t.Error("two public events share an id")
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	m := &message{event: domain.PublicEvent{ID: "id-1", Type: "USER_UPDATED", Sub: `a"b`, Sequence: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 60_000, time.FixedZone("", 3600)),
		Data: []byte(`{"sub":"a\"b","identityId":"i","providerUserId":"1095","changes":{"email":"ada@example.com"}}`)}}
	for _, tt := range []struct {
		payload string
		gap     eventstore.Revision
		want    string
	}{
		{domain.PayloadFull, none, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","sequence":7,"data":{"sub":"a\"b","identityId":"i","providerUserId":"1095","changes":{"email":"ada@example.com"}}}`},
		{domain.PayloadThin, none, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","sequence":7,"data":{"identityId":"i","sub":"a\"b"}}`},
		{domain.PayloadThin, 5, `{"type":"USER_UPDATED","timestamp":"2026-01-02T02:04:05.00006Z","id":"id-1","sub":"a\"b","sequence":7,"previous_sequence":5,"data":{"identityId":"i","sub":"a\"b"}}`},
	} {
		got, err := m.render(&form{format: domain.FormatStandard, payload: tt.payload}, tt.gap)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s after %d:\n%s, %v, want\n%s", tt.payload, tt.gap, got, err, tt.want)
		}
	}
	a, _ := m.body(&form{format: domain.FormatStandard, payload: domain.PayloadThin}, none)
	b, _ := m.body(&form{format: domain.FormatStandard, payload: domain.PayloadThin}, none)
	if &a[0] != &b[0] || bytes.Contains(a, []byte("ada@example.com")) {
		t.Error("a thin body is rendered twice or says more than ids")
	}
}
