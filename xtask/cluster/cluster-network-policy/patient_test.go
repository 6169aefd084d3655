// Package patient is upstream's ClusterNetworkPolicy conformance suite with other timeouts, for a
// processor that is emulated. Upstream's own test program has no options for them, its library has.
// It must add nothing to what upstream tests: the tests, the profile and the report are upstream's,
// and so is the order of what is done here (conformance/conformance_profile_test.go).
package patient

import (
	"flag"
	"os"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/yaml"

	api "sigs.k8s.io/network-policy-api/apis/v1beta1"
	// Upstream's own test program, which is built from this module too.
	_ "sigs.k8s.io/network-policy-api/conformance"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	timeouts "sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/flags"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

var patience = flag.Int("patience", 1, "How many times as long as upstream to wait")

// TestConformanceProfiles has the name of upstream's test, so that results have the same names.
func TestConformanceProfiles(t *testing.T) {
	cfg, err := config.GetConfig()
	if err != nil {
		t.Fatalf("Error loading Kubernetes config: %v", err)
	}
	c, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatalf("Error initializing Kubernetes client: %v", err)
	}
	clientSet, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatalf("error when creating Kubernetes ClientSet: %v", err)
	}
	if err := api.Install(c.Scheme()); err != nil {
		t.Fatalf("Error installing api scheme: %v", err)
	}
	if err := apiextensionsv1.AddToScheme(c.Scheme()); err != nil {
		t.Fatalf("Error installing apiextensions scheme: %v", err)
	}
	implementation, err := suite.ParseImplementation(
		*flags.ImplementationOrganization,
		*flags.ImplementationProject,
		*flags.ImplementationURL,
		*flags.ImplementationVersion,
		*flags.ImplementationContact,
		*flags.ImplementationAdditionalInformation,
	)
	if err != nil {
		t.Fatalf("Error parsing implementation's details: %v", err)
	}
	cSuite, err := suite.NewConformanceProfileTestSuite(suite.ConformanceProfileOptions{
		Options: suite.Options{
			Client:                     c,
			ClientSet:                  clientSet,
			KubeConfig:                 *cfg,
			Debug:                      *flags.ShowDebug,
			CleanupBaseResources:       *flags.CleanupBaseResources,
			SupportedFeatures:          suite.ParseSupportedFeatures(*flags.SupportedFeatures),
			ExemptFeatures:             suite.ParseSupportedFeatures(*flags.ExemptFeatures),
			EnableAllSupportedFeatures: *flags.EnableAllSupportedFeatures,
			TimeoutConfig:              patient(*patience),
		},
		Implementation:      *implementation,
		ConformanceProfiles: suite.ParseConformanceProfiles(*flags.ConformanceProfiles),
	})
	if err != nil {
		t.Fatalf("error creating conformance test suite: %v", err)
	}
	cSuite.Setup(t)
	if err := cSuite.Run(t, tests.ConformanceTests); err != nil {
		t.Fatalf("error running the suite: %v", err)
	}
	report, err := cSuite.Report()
	if err != nil {
		t.Fatalf("error generating conformance profile report: %v", err)
	}
	raw, err := yaml.Marshal(report)
	if err != nil {
		t.Fatalf("error writing the report: %v", err)
	}
	if *flags.ReportOutput != "" {
		if err := os.WriteFile(*flags.ReportOutput, raw, 0o600); err != nil {
			t.Fatalf("error writing the report: %v", err)
		}
	}
	t.Logf("Conformance report:\n%s", raw)
}

// patient has upstream's timeouts, so many times. Upstream says of each of them: "Max value for
// conformant implementation: None".
func patient(times int) timeouts.TimeoutConfig {
	all := timeouts.DefaultTimeoutConfig()
	for _, timeout := range []*time.Duration{
		&all.CreateTimeout, &all.DeleteTimeout, &all.GetTimeout, &all.ManifestFetchTimeout,
		&all.NamespacesMustBeReady, &all.PokeTimeout,
	} {
		*timeout *= time.Duration(times)
	}
	// One connection: most of it is waited for in full, since it is denied.
	all.RequestTimeout *= time.Duration(min(times, 2))
	return all
}
