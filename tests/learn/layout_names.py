"""How the keys of diffusers' and transformers' models read in the files that their authors publish.

Each table holds replacements of regular expressions, applied in order to a key of the model.
"""

from __future__ import annotations

import re

Undo = tuple[tuple[str, str], ...]

COMFY: Undo = ((r"^", "model.diffusion_model."),)
QKV: Undo = ((r"\.to_[qkv]\.", ".qkv."),)
WAN: Undo = (
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm?."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"\.norm\?\.", ".norm3."),
    (r"^condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
    (r"^condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"),
    (r"\.ffn\.net\.2", ".ffn.2"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
)
WAN_ATTENTION: Undo = (
    (r"_attn\.to_([qkv])\.", r"_attn.\1."),
    (r"_attn\.to_out\.0\.", "_attn.o."),
    (r"_attn\.add_([kv])_proj\.", r"_attn.\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
)
STATISTICS: Undo = (
    (r"^latents_mean", "per_channel_statistics.mean-of-means"),
    (r"^latents_std", "per_channel_statistics.std-of-means"),
)
NORM_QK: Undo = ((r"\.norm_([qk])\.", r".\1_norm."),)


def undo_blocks(side: str, *places: str) -> Undo:
    """Return the replacements that number the parts of blocks through: the n-th place becomes `blocks.n`."""
    ordered = sorted(enumerate(places), key=lambda place: -place[1].count("."))
    numbered = [(rf"^{side}\.{re.escape(place)}\.", f"{side}!{n}.") for n, place in ordered]
    return (*numbered, (rf"^{side}!", f"{side}.{'down' if side == 'encoder' else 'up'}_blocks."))


ENCODER_091 = (
    "0",
    "0.downsamplers.0",
    "0.conv_out",
    "1",
    "1.downsamplers.0",
    "1.conv_out",
    "2",
    "2.downsamplers.0",
    "3",
)
DECODER_091 = ("0", "1.upsamplers.0", "1", "2.conv_in", "2.upsamplers.0", "2", "3.conv_in", "3.upsamplers.0", "3")
ENCODER_2 = ("0", "0.downsamplers.0", "1", "1.downsamplers.0", "2", "2.downsamplers.0", "3", "3.downsamplers.0")
DECODER_2 = ("0.upsamplers.0", "0", "1.upsamplers.0", "1", "2.upsamplers.0", "2")
VAE_NAMES: Undo = ((r"\.resnets\.", ".res_blocks."), *STATISTICS, (r"^", "vae."))

CLIP: Undo = ((r"^", "cond_stage_model.transformer."),)
T5: Undo = ((r"^", "text_encoders.t5xxl.transformer."),)
CASCADE: Undo = (
    (r"\.to_[qkv]\.(weight|bias)$", r".attn.in_proj_\1"),
    (r"\.to_out\.0\.", ".attn.out_proj."),
    (r"^clip_txt_pooled_mapper\.", "clip_mapper."),
)
FLUX2: Undo = (
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"_modulation(_img|_txt|)\.linear\.", r"_modulation\1.lin."),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks", "double_blocks"),
    (r"\.attn\.norm_(added_)q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_(added_)k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.to_[qkv]\.", ".img_attn.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".txt_attn.qkv."),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.linear_in\.", ".img_mlp.0."),
    (r"\.ff\.linear_out\.", ".img_mlp.2."),
    (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
    (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
)
FLUX3: Undo = (
    (r"^x_embedders\.", "emb_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^mode_blocks\.", "content_mode_blocks."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^norm_out\.linear\.", "final_layer.image.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.image.linear."),
    (r"^timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"_modulations\.(\w+)\.linear\.", r"_modulations.\1.lin."),
    (r"\.attn\.to_([qkv])\.", r".\1_proj."),
    (r"\.attn\.to_out\.0\.", ".attn_out."),
    (r"\.attn\.norm_q\.weight", ".norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".norm.key_norm.scale"),
    (r"\.ff\.linear_(in|out)\.", r".mlp_\1."),
)
Z_IMAGE: Undo = (
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"\.to_out\.0\.", ".out."),
    *NORM_QK,
    *QKV,
    *COMFY,
)
KREA2: Undo = (
    (r"^img_in\.", "first."),
    (r"^time_embed\.linear_1\.", "tmlp.0."),
    (r"^time_embed\.linear_2\.", "tmlp.2."),
    (r"^time_mod_proj\.", "tproj.1."),
    (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
    (r"^txt_in\.linear_1\.", "txtmlp.1."),
    (r"^txt_in\.linear_2\.", "txtmlp.3."),
    (r"^text_fusion\.", "txtfusion."),
    (r"^transformer_blocks\.", "blocks."),
    (r"^final_layer\.linear\.", "last.linear."),
    (r"^final_layer\.norm\.weight", "last.norm.scale"),
    (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
    (r"\.attn\.to_out\.0\.", ".attn.wo."),
    (r"\.attn\.to_gate\.", ".attn.gate."),
    (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
    (r"\.attn\.norm_([qk])\.weight", r".attn.qknorm.\1norm.scale"),
    (r"\.ff\.", ".mlp."),
    (r"\.norm1\.weight", ".prenorm.scale"),
    (r"\.norm2\.weight", ".postnorm.scale"),
    (r"\.scale_shift_table", ".mod.lin"),
    *COMFY,
)
LTX: Undo = ((r"^proj_in\.", "patchify_proj."), (r"^time_embed\.", "adaln_single."), *NORM_QK, *COMFY)
LTX2: Undo = (
    (r"^(audio_|)proj_in\.", r"\1patchify_proj."),
    (r"^(audio_|)time_embed\.", r"\1adaln_single."),
    (r"^av_cross_attn_(video|audio)_scale_shift\.", r"av_ca_\1_scale_shift_adaln_single."),
    (r"^av_cross_attn_video_a2v_gate\.", "av_ca_a2v_gate_adaln_single."),
    (r"^av_cross_attn_audio_v2a_gate\.", "av_ca_v2a_gate_adaln_single."),
    (r"\.(video|audio)_a2v_cross_attn_scale_shift_table", r".scale_shift_table_a2v_ca_\1"),
    *NORM_QK,
    *COMFY,
)
DC: Undo = (
    (r"\.conv([12])\.(weight|bias)", r".main.conv\1.conv.\2"),
    (r"(blocks\.\d+\.\d+)\.norm\.", r"\1.main.conv2.norm."),
    (r"(blocks\.\d+\.\d+)\.conv\.", r"\1.main.conv.conv."),
    (r"\.attn\.to_[qkv]\.", ".context_module.main.qkv.conv."),
    (r"\.attn\.to_qkv_multiscale\.0\.proj_in\.", ".context_module.main.aggreg.0.0."),
    (r"\.attn\.to_qkv_multiscale\.0\.proj_out\.", ".context_module.main.aggreg.0.1."),
    (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
    (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
    (r"\.conv_out\.conv_(inverted|depth|point)\.", r".local_module.main.\1_conv.conv."),
    (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
    (r"^(encoder|decoder)\.(down|up)_blocks\.(\d+)\.", r"\1.stages.\3.op_list."),
    (r"^encoder\.conv_in\.", "encoder.project_in.conv."),
    (r"^encoder\.conv_out\.", "encoder.project_out.main.0.conv."),
    (r"^decoder\.conv_in\.", "decoder.project_in.main.conv."),
    (r"^decoder\.norm_out\.", "decoder.project_out.main.0."),
    (r"^decoder\.conv_out\.", "decoder.project_out.main.2.conv."),
)
COSMOS: Undo = (
    (r"^transformer_blocks\.", "blocks."),
    (r"^patch_embed\.proj\.", "x_embedder.proj.1."),
    (r"^time_embed\.t_embedder\.", "t_embedder.1."),
    (r"^time_embed\.norm\.", "t_embedding_norm."),
    (r"^norm_out\.linear_([12])\.", r"final_layer.adaln_modulation.\1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"\.norm1\.linear_([12])\.", r".adaln_modulation_self_attn.\1."),
    (r"\.norm2\.linear_([12])\.", r".adaln_modulation_cross_attn.\1."),
    (r"\.norm3\.linear_([12])\.", r".adaln_modulation_mlp.\1."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1_proj."),
    (r"\.to_out\.0\.", ".output_proj."),
    *NORM_QK,
    (r"\.ff\.net\.0\.proj\.", ".mlp.layer1."),
    (r"\.ff\.net\.2\.", ".mlp.layer2."),
    (r"^", "net."),
)
MOTION: Undo = (
    (r"\.motion_modules\.(\d+)\.", r".motion_modules.\1.temporal_transformer."),
    (r"(s\.\d+)\.norm1\.", r"\1.norms.0."),
    (r"(s\.\d+)\.norm2\.", r"\1.norms.1."),
    (r"(s\.\d+)\.norm3\.", r"\1.ff_norm."),
    (r"\.attn1\.", ".attention_blocks.0."),
    (r"\.attn2\.", ".attention_blocks.1."),
)
MINIMAX_H3: Undo = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.refiner_blocks\.", ".blocks."),
    (r"^time_embedder\.linear_1\.", "time_embedder.proj_in."),
    (r"^time_embedder\.linear_2\.", "time_embedder.proj_out."),
    (r"^proj_in\.", "video_patch_proj."),
    (r"^audio_proj_in\.", "audio_patch_proj."),
    (r"^context_embedder\.", "condition_proj."),
    (r"^norm_out\.norm\.", "final_layer.norm."),
    (r"^norm_out\.linear\.", "final_layer.adaln_proj.linear."),
    (r"^proj_out\.", "final_layer.video_out."),
    (r"^audio_proj_out\.", "final_layer.audio_out."),
    (r"\.attn\.to_[qkv]\.", ".attn.qkv_proj."),
    (r"\.attn\.to_out\.0\.", ".attn.out_proj."),
    (r"\.attn\.norm_([qk])\.", r".attn.\1_norm."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
    (r"\.ff\.net\.2\.", ".mlp.fc2."),
)
HUNYUAN: Undo = (
    (r"^x_embedder\.", "img_in."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "time_in.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "time_in.mlp.2."),
    (r"^time_text_embed\.guidance_embedder\.linear_1\.", "guidance_in.mlp.0."),
    (r"^time_text_embed\.guidance_embedder\.linear_2\.", "guidance_in.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "vector_in.in_layer."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "vector_in.out_layer."),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1\.", "txt_in.t_embedder.mlp.0."),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2\.", "txt_in.t_embedder.mlp.2."),
    (r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
    (r"^context_embedder\.proj_in\.", "txt_in.input_embedder."),
    (r"^context_embedder\.token_refiner\.refiner_blocks\.", "txt_in.individual_token_refiner.blocks."),
    (r"^(txt_in.*)\.norm_out\.linear\.", r"\1.adaLN_modulation.1."),
    (r"^(txt_in.*)\.attn\.to_[qkv]\.", r"\1.self_attn_qkv."),
    (r"^(txt_in.*)\.attn\.to_out\.0\.", r"\1.self_attn_proj."),
    (r"^(txt_in.*)\.ff\.net\.0\.proj\.", r"\1.mlp.fc1."),
    (r"^(txt_in.*)\.ff\.net\.2\.", r"\1.mlp.fc2."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.(\d+)\.(attn\.to_[qkv]|proj_mlp)\.", r"single_blocks.\1.linear1."),
    (r"^single_transformer_blocks\.(\d+)\.proj_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_([qk])\.", r"single_blocks.\1.\2_norm."),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear\.", r"single_blocks.\1.modulation.linear."),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.linear."),
    (r"\.norm1_context\.linear\.", ".txt_mod.linear."),
    (r"\.attn\.norm_added_([qk])\.", r".txt_attn_\1_norm."),
    (r"\.attn\.norm_([qk])\.", r".img_attn_\1_norm."),
    (r"\.attn\.to_[qkv]\.", ".img_attn_qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".txt_attn_qkv."),
    (r"\.attn\.to_out\.0\.", ".img_attn_proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn_proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.fc1."),
    (r"\.ff\.net\.2\.", ".img_mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.fc2."),
)
LUMINA2: Undo = (
    (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
    (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."),
    (r"^norm_out\.linear_2\.", "final_layer.linear."),
    (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
    (r"\.norm1\.norm\.", ".attention_norm1."),
    (r"(s|r)\.(\d+)\.norm([12])\.", r"\1.\2.attention_norm\3."),
    (r"\.linear_([123])\.", r".w\1."),
    (r"\.attn\.to_out\.0\.", ".attention.out."),
    (r"\.attn\.to_[qkv]\.", ".attention.qkv."),
    (r"\.attn\.norm_([qk])\.", r".attention.\1_norm."),
)
