"""The test engine's side of Pulumi's gRPC protocol. Method names are Pulumi's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, provider_pb2, resource_pb2, resource_pb2_grpc

from tests.lab.pulumi_model import Registration, Run
from tests.lab.pulumi_wire import from_struct, plain, to_struct

if TYPE_CHECKING:
    from tests.lab.pulumi_engine import Engine

STACK_TYPE = "pulumi:pulumi:Stack"
FEATURES = ("SECRETS", "RESOURCE_REFERENCES", "ALIAS_SPECS", "DELETED_WITH", "REPLACE_WITH", "PARAMETERIZATION")


class Monitor(resource_pb2_grpc.ResourceMonitorServicer):
    """What a program talks to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def GetDeploymentInfo(self, request: Any, context: Any) -> Any:
        engine = self.engine
        features = [getattr(resource_pb2, f"RESOURCE_MONITOR_FEATURE_{name}") for name in FEATURES]
        return resource_pb2.DeploymentInfo(
            project=engine.project,
            stack=engine.stack,
            organization="organization",
            dryRun=engine.run.preview,
            config=engine.config,
            configSecretKeys=list(engine.secret_keys),
            supportedFeatures=features,
        )

    def SupportsFeature(self, request: Any, context: Any) -> Any:
        known = ("secrets", "resourceReferences", "aliasSpecs", "deletedWith")
        return resource_pb2.SupportsFeatureResponse(hasSupport=request.id in known)

    def RegisterPackage(self, request: Any, context: Any) -> Any:
        return resource_pb2.RegisterPackageResponse(ref=request.name)

    def SignalAndWaitForShutdown(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    def RegisterResource(self, request: Any, context: Any) -> Any:
        wanted = _registration(request, self.engine)
        try:
            found = self.engine.register(wanted)
        except Exception as error:
            message = f"{wanted.type} {wanted.name}: {error}"
            self.engine.run.errors.append(message)
            context.abort(grpc.StatusCode.UNKNOWN, message)
            raise
        return resource_pb2.RegisterResourceResponse(urn=found.urn, id=found.id, object=to_struct(found.outputs))

    def RegisterResourceOutputs(self, request: Any, context: Any) -> Any:
        if f"::{STACK_TYPE}::" in request.urn:
            self.engine.run.outputs = from_struct(request.outputs)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        provider = request.provider.rpartition("::")[0]
        try:
            answer = self.engine.invoke(request.tok, plain(from_struct(request.args)), provider)
        except Exception as error:
            failure = provider_pb2.CheckFailure(reason=f"{type(error).__name__}: {error}")
            return resource_pb2.ResourceInvokeResponse(failures=[failure])
        return resource_pb2.ResourceInvokeResponse(**{"return": to_struct(answer)})


class Log(engine_pb2_grpc.EngineServicer):
    """What takes messages."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.root = ""

    def Log(self, request: Any, context: Any) -> Any:
        if request.severity != engine_pb2.LogSeverity.DEBUG:
            self.run.logs.append((engine_pb2.LogSeverity.Name(request.severity), request.message))
        return empty_pb2.Empty()

    def GetRootResource(self, request: Any, context: Any) -> Any:
        return engine_pb2.GetRootResourceResponse(urn=self.root)

    def SetRootResource(self, request: Any, context: Any) -> Any:
        self.root = request.urn
        return engine_pb2.SetRootResourceResponse()

    def RequirePulumiVersion(self, request: Any, context: Any) -> Any:
        return engine_pb2.RequirePulumiVersionResponse()

    def StartDebugging(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()


def _registration(request: Any, engine: Engine) -> Registration:
    parent = request.parent.split("::")[2] + "$" if request.parent and STACK_TYPE not in request.parent else ""
    by_property = (urn for item in request.propertyDependencies.values() for urn in item.urns)
    return Registration(
        urn=f"urn:pulumi:{engine.stack}::{engine.project}::{parent}{request.type}::{request.name}",
        type=request.type,
        name=request.name,
        custom=request.custom,
        inputs=from_struct(request.object),
        parent=request.parent,
        provider=request.provider.rpartition("::")[0],
        dependencies=tuple(sorted({*request.dependencies, *by_property})),
        protect=request.protect,
        retain=request.retainOnDelete,
        delete_before_replace=request.deleteBeforeReplace,
        ignore_changes=tuple(request.ignoreChanges),
        additional_secrets=tuple(request.additionalSecretOutputs),
    )
