"""Regions of both clouds that offer GPU instances. As of 2026-11, from public documentation."""

from __future__ import annotations

REGIONS: dict[str, tuple[str, ...]] = {
    "aws": (
        "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1",
        "eu-central-1", "eu-central-2", "eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1", "eu-south-1",
        "eu-south-2", "ap-south-1", "ap-south-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3",
        "ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5",
        "ap-east-1", "me-south-1", "me-central-1", "il-central-1", "af-south-1",
    ),
    "alicloud": (
        "cn-hangzhou", "cn-shanghai", "cn-beijing", "cn-shenzhen", "cn-zhangjiakou", "cn-huhehaote",
        "cn-wulanchabu", "cn-qingdao", "cn-guangzhou", "cn-heyuan", "cn-chengdu", "cn-nanjing",
        "cn-fuzhou", "cn-hongkong", "ap-southeast-1", "ap-southeast-3", "ap-southeast-5", "ap-southeast-6",
        "ap-southeast-7", "ap-northeast-1", "ap-northeast-2", "us-east-1", "us-west-1", "eu-central-1",
        "eu-west-1", "me-east-1", "me-central-1",
    ),
}  # fmt: skip
