package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// described is openapi.json, loaded once for all tests.
var described = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background()); err != nil { // examples included
		return nil, err
	}
	doc.Servers = nil // the tests' own
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.FileBodyDecoder)
	return gorillamux.NewRouter(doc)
})

// conforms holds one exchange against openapi.json: every answer, and every request that was accepted.
func conforms(t *testing.T, req *http.Request, sent string, resp *http.Response, body string) {
	t.Helper()
	router, err := described()
	if err != nil {
		t.Fatal(err)
	}
	if req.Method == "OPTIONS" || req.Method == "HEAD" {
		return
	}
	route, params, err := router.FindRoute(req)
	if err != nil {
		if !slices.Contains([]int{401, 403, 404, 405}, resp.StatusCode) {
			t.Errorf("%s %s is answered %d but not described: %v", req.Method, req.URL.Path, resp.StatusCode, err)
		}
		return
	}
	again := req.Clone(context.Background())
	again.Body = http.NoBody
	if sent != "" {
		again.Body = io.NopCloser(strings.NewReader(sent))
	}
	in := &openapi3filter.RequestValidationInput{Request: again, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
	if e := req.Header.Get("Content-Encoding"); e != "" {
		in.Options.ExcludeRequestBody = true
	}
	// What curl -d calls a form is taken as what it is.
	if resp.StatusCode < 300 && !strings.Contains(req.Header.Get("Content-Type"), "form") {
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			t.Errorf("%s %s was accepted, but: %v", req.Method, req.URL, err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options}
	out.SetBodyBytes([]byte(body))
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		t.Errorf("%s %s: %d %s: %v", req.Method, req.URL, resp.StatusCode, body, err)
	}
}

// TestRoutesAreThoseDescribed holds the route table equal to openapi.json, parameters included.
func TestRoutesAreThoseDescribed(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			var query []string
			for _, p := range op.Parameters {
				if p.Value.In == "query" {
					query = append(query, p.Value.Name)
				}
			}
			slices.Sort(query)
			want = append(want, fmt.Sprint(method, " ", path, " ", query))
		}
	}
	// What cmd/router mounts; a test there holds its mounts against openapi.json too.
	mounts := []Mount{{Method: "GET", Path: "/v1/ws", Stream: true, In: Known}, {Method: "GET", Path: "/mqtt", Stream: true, In: Anyone},
		{Method: "GET", Path: "/v1/sources", In: Known}, {Method: "POST", Path: "/v1/sources/{name}", In: Anyone}, {Method: "OPTIONS", Path: "/v1/sources/{name}", In: Anyone},
		{Method: "GET", Path: "/v1/sources/{name}", Query: []string{"hub.mode", "hub.verify_token", "hub.challenge"}, In: Anyone},
		{Method: "POST", Path: "/v1/sources/{name}/test", In: Known}}
	for _, r := range append(routes(), mounted(mounts)...) {
		query := append([]string{}, r.query...)
		if r.stream {
			query = append(query, "access_token")
		}
		slices.Sort(query)
		got = append(got, fmt.Sprint(r.method, " ", r.path, " ", query))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("routed:\n%s\n\ndescribed:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	_, base := serve(t, Options{Backend: newFake()})
	if _, body := do(t, "GET", base+"/v1/openapi.json", ""); !bytes.Equal([]byte(body), openAPI) {
		t.Error("/v1/openapi.json is not openapi.json")
	}
}
