package httpapi

import (
	"embed"
	"html/template"
	"maps"
	"net/http"
	"path"
	"slices"

	"accountledger/domain"
)

// The pages for people: they work without a network and without JavaScript
// from elsewhere.
//
//go:embed pages
var pageFiles embed.FS

// pages are the resources outside /v1, which need no key.
func (s *server) pages() map[string]http.Handler {
	problems := template.Must(template.ParseFS(pageFiles, "pages/problems.html"))
	return map[string]http.Handler{
		"/healthz":        http.HandlerFunc(s.healthz),
		"/readyz":         http.HandlerFunc(s.readyz),
		"/metrics":        http.HandlerFunc(s.metrics),
		"/openapi.json":   static("application/json", s.described),
		"/asyncapi.json":  static("application/json", s.told),
		"/docs":           staticFile("text/html; charset=utf-8", "docs.html"),
		"/docs/docs.js":   staticFile("text/javascript; charset=utf-8", "docs.js"),
		"/docs/style.css": staticFile("text/css; charset=utf-8", "style.css"),
		"/problems":       http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { problemPage(w, problems, problemList()) }),
		"/problems/:code": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			code := domain.Code(path.Base(r.URL.Path))
			if _, ok := problemKinds[code]; !ok {
				writeProblem(w, newProblem(codeNotFound, "There is no problem of this name.").of(callOf(r.Context())))
				return
			}
			problemPage(w, problems, []problemEntry{entryOf(code)})
		}),
	}
}

// contentPolicy lets a page load what this server serves and nothing else.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func static(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Content-Security-Policy", contentPolicy)
		w.Write(body)
	})
}

func staticFile(contentType, name string) http.Handler {
	body, err := pageFiles.ReadFile("pages/" + name)
	if err != nil {
		panic("httpapi: " + err.Error()) // it is embedded
	}
	return static(contentType, body)
}

// problemEntry is a problem as its page explains it.
type problemEntry struct {
	Code                   domain.Code
	Status                 int
	Title, Meaning, Remedy string
}

func entryOf(code domain.Code) problemEntry {
	k := problemKinds[code]
	return problemEntry{code, k.status, k.title, k.meaning, k.remedy}
}

func problemList() []problemEntry {
	var list []problemEntry
	for _, code := range slices.Sorted(maps.Keys(problemKinds)) {
		list = append(list, entryOf(code))
	}
	return list
}

func problemPage(w http.ResponseWriter, t *template.Template, list []problemEntry) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Security-Policy", contentPolicy)
	t.Execute(w, list) // an error is the reader's connection's
}
